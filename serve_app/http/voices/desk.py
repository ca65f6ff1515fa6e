"""Makes, changes and deletes voices for the routes, whichever client's they are."""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any, Final

import numpy as np

from serve_app.audio.decoding import CLIP_HZ, mime_of
from serve_app.config import VoicesConfig
from serve_app.errors import InvalidRequest, NotAllowed, NotFound
from serve_app.http.catalog import Catalog
from serve_app.http.names import VOICE_ALIASES, find_voice
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.checks import refuse_controls
from serve_app.http.speech.voice import caller, decoded_base64
from serve_app.http.voices.forms import Form
from serve_app.http.voices.parts import Voices
from serve_app.pipeline import join
from serve_app.resumption import Speak
from serve_app.voices.clips import flac_bytes, vector_bytes
from serve_app.voices.consents import check_consent
from serve_app.voices.making import checked_vector
from serve_app.voices.names import (
    checked_language,
    checked_name,
    checked_text,
    folded,
    new_consent_id,
    new_voice_id,
)
from serve_app.voices.values import Alias, Caller, Change, Consent, StoredVoice

_SAMPLES: Final = ("audio_sample", "voice_file", "file", "ref_audio")
_MAX_PROMPT_CHARS: Final = 2000
_MAX_SCRIPT_CHARS: Final = 300
# What a designed voice says first, where its maker does not say it: some seconds, and many sounds.
_SCRIPT: Final = (
    "Good morning, and welcome. The quick brown fox jumps over the lazy dog, while I tell you a"
    " story about a journey across the sea."
)


class Desk:
    """
    Args:
        speak: makes the recordings of designed voices.
    """

    def __init__(self, voices: Voices, catalog: Catalog, speech: Speech, speak: Speak) -> None:
        self.library = voices.library
        self.maker = voices.maker
        self.config: VoicesConfig = voices.config
        self._catalog = catalog
        self._speech = speech
        self._speak = speak

    @property
    def caller(self) -> Caller:
        return caller(self.config)

    def require_uploads(self) -> None:
        """
        Raises:
            NotAllowed: the operator has switched changes off.
        """
        if not self.config.uploads:
            raise NotAllowed("Voices cannot be made, changed or deleted on this server.")

    async def create(self, form: Form) -> StoredVoice:
        """A voice of a recording, of a vector or of a description.

        Raises:
            InvalidRequest, Conflict, NotAllowed, Overloaded, StageUnavailable
        """
        self.require_uploads()
        name = self._free_name(form.text("name", "voice_name"))
        text, language, description = self._facts(form)
        shared = form.flag("shared")
        if form.text("type") == "prompt":
            return await self._designed(form, name, language, description, bool(shared))
        stated = form.text("consent")
        await self.library.look_for_consent(stated)
        consent = check_consent(
            stated,
            self.library.known,
            self.caller,
            self.config.require_consent,
        )
        facts: dict[str, Any] = {
            "name": name,
            "transcript": text or None,
            "language": language or None,
            "description": description or None,
            "shared": bool(shared) or self.config.share,
            "consent": consent,
        }
        vector = form.fields.get("speaker_embedding")
        if vector is not None:
            if any(form.fields.get(field) or field in form.files for field in _SAMPLES):
                raise InvalidRequest(
                    "'speaker_embedding' and a recording exclude each other.", "speaker_embedding"
                )
            return await self._of_vector(vector, facts)
        param, data = await self._sample(form, *_SAMPLES)
        samples = await self.maker.decoded(data, param)
        return await self._keep(samples, "audio_sample", data, facts)

    async def _of_vector(self, stated: Any, facts: dict[str, Any]) -> StoredVoice:
        param = "speaker_embedding"
        try:
            values = json.loads(stated) if isinstance(stated, str) else stated
        except (ValueError, RecursionError) as error:
            raise InvalidRequest(f"'{param}' must be a list of numbers.", param) from error
        vector = checked_vector(values, param)
        sizes = {card.speaker_vector_size for card in self._catalog.cards} - {None}
        if sizes and len(vector) not in sizes:
            wanted = " or ".join(str(size) for size in sorted(sizes, key=str))
            raise InvalidRequest(
                f"'{param}' has {len(vector)} numbers; the models served here take {wanted}.",
                param,
                "invalid_speaker_embedding",
            )
        data = vector_bytes(vector)
        own = {**facts, "vector_size": len(vector), "transcript": None}
        digest = hashlib.sha256(data).hexdigest()
        voice = self._voice("embedding", 0.0, len(data), digest, "application/octet-stream", own)
        return await self.library.add(voice, {"vector.safetensors": data})

    async def _designed(
        self, form: Form, name: str, language: str | None, description: str | None, shared: bool
    ) -> StoredVoice:
        """Speak from a description, and keep what was said as the recording of a voice."""
        prompt = checked_text(form.text("prompt"), "prompt")
        script = checked_text(form.text("script_hint", "ref_text") or _SCRIPT, "script_hint")
        for text, param, limit in (
            (prompt, "prompt", _MAX_PROMPT_CHARS),
            (script, "script_hint", _MAX_SCRIPT_CHARS),
        ):
            if not 0 < len(text) <= limit:
                raise InvalidRequest(f"'{param}' must have 1 to {limit} characters.", param)
        cards = [card for card in self._catalog.cards if "description" in card.voice_sources]
        if not cards:
            raise InvalidRequest(
                "No model served here makes voices from descriptions: that takes"
                " Qwen3-TTS-12Hz-1.7B-VoiceDesign.",
                "type",
                "voice_not_supported",
            )
        fields = {
            "model": cards[0].name,
            "input": script,
            "instructions": prompt,
            "language": language,
            "seed": form.fields.get("seed"),
            "max_new_tokens": min(
                int(self.config.max_s * cards[0].frame_rate_hz), cards[0].max_new_tokens
            ),
        }
        job = await self._speech.accept(fields)
        async with aclosing(job.chunks(self._speak)) as chunks:
            spoken = await join(chunks)
        samples = spoken.samples.astype(np.float32) / 32768
        facts = {
            "name": name,
            "transcript": script if spoken.finish_reason == "stop" else None,
            "language": language or None,
            "description": description or prompt[:256],
            "shared": shared or self.config.share,
            "consent": None,
            "prompt": prompt,
        }
        return await self._keep(samples, "prompt", spoken.samples.tobytes(), facts)

    async def _keep(
        self, samples: np.ndarray, source: Any, data: bytes, facts: dict[str, Any]
    ) -> StoredVoice:
        recording, digest = await self.maker.on_thread(_kept_of, samples, data)
        mime = mime_of(data) if source == "audio_sample" else "audio/flac"
        duration_s = len(samples) / CLIP_HZ
        voice = self._voice(source, duration_s, len(data), digest, mime, facts)
        voice = await self.library.add(voice, {"recording.flac": recording})
        self.maker.prepare(voice, self._catalog.cards)
        return voice

    def _voice(
        self,
        source: Any,
        duration_s: float,
        file_size: int,
        digest: str,
        mime: str,
        facts: dict[str, Any],
    ) -> StoredVoice:
        return StoredVoice(
            id=new_voice_id(),
            created_at=int(time.time()),
            owner=self.caller.name,
            source=source,
            file_size=file_size,
            mime_type=mime,
            digest=digest,
            duration_s=duration_s,
            **facts,
        )

    async def _sample(self, form: Form, *names: str) -> tuple[str, bytes]:
        """The recording of a form or of JSON, and what its field is called."""
        found = form.file(*names)
        if found is not None:
            return found
        for name in names:
            stated = form.fields.get(name)
            if isinstance(stated, str) and stated:
                limit = self.config.max_upload_bytes
                return name, await self.maker.on_thread(decoded_base64, stated, name, limit)
        raise InvalidRequest(f"Missing required parameter: '{names[0]}'.", names[0])

    async def change(self, name: str, form: Form) -> StoredVoice:
        self.require_uploads()
        stated = form.text("name", "new_name")
        text, language, description = self._facts(form)
        current = await self.library.get(name, self.caller, to_change=True)
        renamed = None
        if stated is not None and folded(stated) == folded(current.name):
            renamed = checked_name(stated)  # only written another way
        elif stated is not None:
            renamed = self._free_name(stated)
        change = Change(renamed, text, language, description, form.flag("shared"))
        return await self.library.change(current.id, change, self.caller)

    async def delete(self, name: str) -> StoredVoice:
        self.require_uploads()
        return await self.library.delete(name, self.caller)

    async def recording(self, name: str) -> tuple[StoredVoice, bytes]:
        """
        Raises:
            NotFound: there is no such voice, or it has no recording.
        """
        voice = await self.library.get(name, self.caller)
        data = await self.library.recording(voice)
        if data is None:
            raise NotFound("This voice has no recording.", "voice", "not_found")
        return voice, data

    async def set_alias(self, stated: str, target: str) -> Alias:
        """Another name for a voice of the library or a speaker; OpenAI's names may be given."""
        self.require_uploads()
        name = self._alias_name(stated)
        found = await self.library.find(target, self.caller)
        if found is None:
            speakers = (find_voice(target, card) for card in self._catalog.cards if target.strip())
            speaker = next((speaker for speaker in speakers if speaker is not None), None)
            if speaker is None:
                self.library.require()
                raise NotFound(
                    f"The voice '{target[:80]}' does not exist.", "voice", "voice_not_found"
                )
        else:
            speaker = found.id
        alias = Alias(name, self._owner, speaker)
        await self.library.set_alias(alias)
        return alias

    async def drop_alias(self, name: str) -> None:
        self.require_uploads()
        await self.library.drop_alias(name, self._owner)

    async def set_default(self, name: str | None) -> StoredVoice | None:
        self.require_uploads()
        voice = None if name is None else await self.library.get(name, self.caller)
        await self.library.set_default(self._owner, None if voice is None else voice.id)
        return voice

    async def add_consent(self, form: Form) -> Consent:
        self.require_uploads()
        name = checked_name(form.text("name"))
        language = checked_language(form.text("language"))
        param, data = await self._sample(form, "recording")
        samples = await self.maker.decoded(data, param)
        recording, digest = await self.maker.on_thread(_kept_of, samples, data)
        consent = Consent(
            id=new_consent_id(),
            created_at=int(time.time()),
            owner=self.caller.name,
            name=name,
            language=language,
            digest=digest,
            duration_s=len(samples) / CLIP_HZ,
        )
        await self.library.add_consent(consent, recording)
        return consent

    @property
    def _owner(self) -> str | None:
        """For whom the caller's aliases and default hold; None: for everybody."""
        return None if self.caller.is_admin else self.caller.name

    def _facts(self, form: Form) -> tuple[str | None, str | None, str | None]:
        """Transcript, language and description as they are stated; "" takes one away."""
        text = _checked(form.text("ref_text", "transcript"), "ref_text", checked_text)
        for card in self._catalog.cards:
            refuse_controls(text or "", "ref_text", card)
        stated = form.text("speaker_description", "description")
        return (
            text,
            _checked(form.text("language"), "language", checked_language),
            _checked(stated, "speaker_description", checked_text),
        )

    def _free_name(self, stated: str | None) -> str:
        name = checked_name(stated)
        if folded(name) in VOICE_ALIASES:
            raise InvalidRequest(
                f"'{name}' is one of OpenAI's names: give the voice another one, and this as an"
                " alias.",
                "name",
                "voice_exists",
            )
        self._refuse_speaker(name, "name")
        return name

    def _alias_name(self, stated: str) -> str:
        name = checked_name(stated, "alias")
        self._refuse_speaker(name, "alias")
        return name

    def _refuse_speaker(self, name: str, param: str) -> None:
        for card in self._catalog.cards:
            if folded(name) in {folded(speaker) for speaker in card.voices}:
                raise InvalidRequest(
                    f"'{name}' is a speaker of '{card.name}'.", param, "voice_exists"
                )


def _kept_of(samples: np.ndarray, data: bytes) -> tuple[bytes, str]:
    """A recording as the library keeps it, and the digest of the file it came as."""
    return flac_bytes(samples), hashlib.sha256(data).hexdigest()


def _checked(value: str | None, param: str, check: Callable[[object, str], str]) -> str | None:
    if value is None or not value.strip():
        return None if value is None else ""
    return check(value, param)
