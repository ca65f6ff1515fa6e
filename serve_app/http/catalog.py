"""The lists of what is served: `GET /v1/models` and `GET /v1/audio/voices` as JSON objects."""

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.http.names import TASK_NAMES, VOICE_ALIASES, alias_target
from serve_app.types import ModelCard


def model_object(card: ModelCard, created: int) -> dict[str, Any]:
    """One entry of `GET /v1/models`; the fields after `owned_by` are extensions."""
    return {
        "id": card.name,
        "object": "model",
        "created": created,
        "owned_by": "qwen",
        "task": "text-to-speech",
        "task_type": TASK_NAMES[card.task],
        "sample_rate": card.sample_rate_hz,
        "languages": list(card.languages),
        "voices": [voice_object(name, card, created) for name in card.voices],
    }


def voice_object(
    name: str, card: ModelCard, created: int, alias_of: str | None = None
) -> dict[str, Any]:
    language = card.voice_languages.get(alias_of or name)
    return {
        "id": name,
        "name": name,
        "object": "audio.voice",
        "created_at": created,
        "type": "builtin" if alias_of is None else "alias",
        "language": language,
        "languages": [known for known in card.languages if known != "auto"],
        "gender": None,
        "description": None,
        "alias_of": alias_of,
        "preview_url": None,
        "model": card.name,
    }


def voices_body(cards: Sequence[ModelCard], created: int, legacy: bool) -> Mapping[str, Any]:
    """`GET /v1/audio/voices`: one body that each kind of client finds its own list in.

    Speakers come before OpenAI's names; a name that several models have is listed once, for the
    first of them. `legacy` gives bare names.
    """
    voices: dict[str, dict[str, Any]] = {}
    for card in cards:
        for name in card.voices:
            voices.setdefault(name.casefold(), voice_object(name, card, created))
    for card in cards:
        for name in VOICE_ALIASES:
            target = alias_target(name, card)
            if target is not None:
                voices.setdefault(name, voice_object(name, card, created, target))
    entries = list(voices.values())
    if legacy:
        return {"voices": [entry["name"] for entry in entries]}
    return {
        "object": "list",
        "data": entries,
        "voices": entries,
        "uploaded_voices": [],
        "first_id": entries[0]["id"] if entries else None,
        "last_id": entries[-1]["id"] if entries else None,
        "has_more": False,
    }
