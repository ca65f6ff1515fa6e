"""What a client sees of a voice; each kind of client finds the fields that it reads."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from serve_app.http.catalog import voices_body
from serve_app.types import ModelCard
from serve_app.voices.index import Snapshot
from serve_app.voices.names import folded, is_voice_id
from serve_app.voices.values import Alias, Caller, Consent, StoredVoice

PATH = "/v1/audio/voices"


def voice_object(voice: StoredVoice, aliases: Iterable[Alias], caller: Caller) -> dict[str, Any]:
    """OpenAI's object of a voice, and what others say of one."""
    has_recording = voice.source != "embedding"
    preview = f"{PATH}/{voice.id}/preview" if has_recording else None
    described = {"prompt": voice.prompt} if voice.prompt is not None else {}
    return {
        "id": voice.id,
        "name": voice.name,
        "object": "audio.voice",
        "created_at": voice.created_at,
        "type": voice.source,
        **described,
        "language": voice.language,
        "languages": [],
        "gender": None,
        "description": voice.description,
        "alias_of": None,
        "preview_url": preview,
        "model": None,
        "ref_text": voice.transcript,
        "consent": voice.consent,
        "duration_seconds": round(voice.duration_s, 3) if has_recording else None,
        "shared": voice.shared or voice.owner is None,
        "mine": voice.may_change(caller),
        "aliases": sorted(alias.name for alias in aliases if alias.target == voice.id),
    }


def uploaded_object(voice: StoredVoice) -> dict[str, Any]:
    """vllm-omni's entry of `uploaded_voices`."""
    stated = {"ref_text": voice.transcript, "speaker_description": voice.description}
    return {
        "name": voice.name,
        "id": voice.id,
        "consent": voice.consent or "",
        "created_at": voice.created_at,
        "file_size": voice.file_size,
        "mime_type": voice.mime_type,
        **{name: value for name, value in stated.items() if value is not None},
        "embedding_source": "direct" if voice.source == "embedding" else "audio",
        "embedding_dim": voice.vector_size,
    }


def library_entry(voice: StoredVoice, aliases: Iterable[Alias]) -> dict[str, Any]:
    """chatterbox's entry of a voice. The file is as the library has it, never as it came."""
    name = f"{voice.name}.flac"
    made = datetime.fromtimestamp(voice.created_at, UTC).isoformat(timespec="seconds")
    return {
        "name": voice.name,
        "id": voice.id,
        "filename": name,
        "original_filename": name,
        "file_extension": ".flac",
        "file_size": voice.file_size,
        "upload_date": made,
        "language": voice.language or "auto",
        "aliases": sorted(alias.name for alias in aliases if alias.target == voice.id),
        "metadata": {"duration_seconds": round(voice.duration_s, 3)},
    }


def consent_object(consent: Consent) -> dict[str, Any]:
    return {
        "id": consent.id,
        "object": "audio.voice_consent",
        "created_at": consent.created_at,
        "name": consent.name,
        "language": consent.language,
    }


def listed(
    cards: Sequence[ModelCard], snapshot: Snapshot, caller: Caller, created: int, legacy: bool
) -> Mapping[str, Any]:
    """`GET /v1/audio/voices`: speakers, voices of the library, aliases; see `voices_body`."""
    aliases = snapshot.aliases_for(caller)
    stored = snapshot.open_to(caller)
    objects = [voice_object(voice, aliases, caller) for voice in stored]
    body = voices_body(cards, created, legacy=False)
    speakers = [entry for entry in body["data"] if entry["alias_of"] is None]
    others = {folded(e["name"]): e for e in body["data"] if e["alias_of"] is not None}
    for alias in aliases:
        others[folded(alias.name)] = _alias_object(alias, snapshot, created)
    entries = [*speakers, *objects, *others.values()]
    if legacy:
        return {"voices": [entry["name"] for entry in entries]}
    return {
        **body,
        "data": entries,
        "voices": entries,
        "uploaded_voices": [uploaded_object(voice) for voice in stored],
        "count": len(entries),
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
    }


def _alias_object(alias: Alias, snapshot: Snapshot, created: int) -> dict[str, Any]:
    voice = snapshot.voices.get(alias.target) if is_voice_id(alias.target) else None
    return {
        "id": alias.name,
        "name": alias.name,
        "object": "audio.voice",
        "created_at": created,
        "type": "alias",
        "language": None if voice is None else voice.language,
        "languages": [],
        "gender": None,
        "description": None if voice is None else voice.description,
        "alias_of": alias.target if voice is None else voice.name,
        "preview_url": None if voice is None else f"{PATH}/{voice.id}/preview",
        "model": None,
    }
