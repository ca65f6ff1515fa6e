"""Which voice a request asks for: a speaker's name, a voice of the library, a blend, a recording.

`Voicing` is the way from the fields of a body to the voice that travels with the request. What it
needs of the library it has looked up before (`ready`), so that a body is checked without waiting;
what has to be read or encoded is made afterwards (`made`).
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from serve_app.config import VoicesConfig
from serve_app.errors import InvalidRequest
from serve_app.http.names import VOICE_ALIASES, find_voice
from serve_app.http.observe.record import current
from serve_app.http.speech.body import MAX_WEIGHT, SpeechBody
from serve_app.http.speech.checks import check_string, refuse_controls, stated
from serve_app.types import ModelCard, NamedVoice, Voice
from serve_app.voices.consents import check_consent
from serve_app.voices.fetching import Fetcher
from serve_app.voices.index import Snapshot
from serve_app.voices.library import Library
from serve_app.voices.making import MAX_BLENDED, VoiceMaker
from serve_app.voices.names import MAX_TEXT_CHARS
from serve_app.voices.values import Caller, StoredVoice

_RECORDINGS: Final = ("ref_audio", "references", "speaker_embedding")
# One part of a blend: a name, and its weight in parentheses. No two neighbours of the pattern match
# the same character, or the time for a name would grow with a power of its length.
_PART: Final = re.compile(r"([^()+]+)(?:\(\s*([0-9]{1,9}(?:\.[0-9]{1,9})?|\.[0-9]{1,9})\s*\))?")
_DATA_URL: Final = re.compile(r"data:[^,;]{0,100}(?:;[^,;]{1,100}){0,4};base64,", re.IGNORECASE)
_LISTED: Final = 20
# What is not there for who has not looked at the library since another wrote to it.
_MISSING: Final = frozenset(("voice_not_found", "consent_not_found"))


@dataclass(frozen=True, slots=True)
class OfLibrary:
    """Voices of the library with their weights; one of them alone is spoken with as it is."""

    parts: tuple[tuple[StoredVoice, float], ...]
    x_vector_only: bool = False


@dataclass(frozen=True, slots=True)
class OfRecording:
    """A recording that came with the request, as text or, from a form, as it is; `text` is what is
    said in it.
    """

    source: str | bytes
    text: str | None
    param: str


@dataclass(frozen=True, slots=True)
class OfVector:
    values: Any


Wanted = OfLibrary | OfRecording | OfVector


class Voicing:
    """
    Args:
        admins: see `VoicesConfig`.
    """

    def __init__(
        self, library: Library, maker: VoiceMaker, fetcher: Fetcher, config: VoicesConfig
    ) -> None:
        self._library = library
        self._maker = maker
        self._fetcher = fetcher
        self._config = config

    async def ready(self) -> float:
        """Know the library as it is now; when that was asked for, for `found_since`."""
        asked_s = self._library.moment_s
        await self._library.now()
        return asked_s

    async def found_since(self, asked_s: float, errors: Iterable[object]) -> bool:
        """Whether what one of `errors` says is missing may be there by now: another server had
        written it before `asked_s`, and this one had not seen it.
        """
        codes = (error.code for error in errors if isinstance(error, InvalidRequest))
        return not _MISSING.isdisjoint(codes) and await self._library.renewed(asked_s)

    @property
    def caller(self) -> Caller:
        """Whose request this task works on."""
        return caller(self._config)

    def named(self, body: SpeechBody) -> SpeechBody:
        """`body` with an alias or the default voice replaced by what it stands for."""
        if any(getattr(body, field) for field in _RECORDINGS):
            return body
        has_name = (body.voice or "").strip().casefold() not in ("", "default")
        if not has_name and (body.task_type or stated(body.instructions) is not None):
            return body  # it says in another way which voice it means
        found = self._library.known.find(body.voice, self.caller)
        if found is None:
            return body
        name = found if isinstance(found, str) else found.id
        return body.model_copy(update={"voice": name})

    def is_stored(self, name: str) -> bool:
        """Whether a name is a voice of the library, or a blend of some."""
        return is_blend(name) or self._library.known.named(name, self.caller) is not None

    def knows(self, body: SpeechBody, cards: Sequence[ModelCard]) -> bool:
        """Whether a body's voice is one that is served or stored; one that states none has one."""
        name = (body.voice or "").strip()
        if name.casefold() in ("", "default"):
            return True
        try:
            parts = blend_of(name)
        except InvalidRequest:
            return False
        snapshot, who = self._library.known, self.caller
        return all(
            snapshot.find(name, who) is not None
            or any(find_voice(name, card) is not None for card in cards)
            for name, _ in parts
        )

    def of_body(self, body: SpeechBody, card: ModelCard) -> Voice | Wanted | None:
        """The voice of a body, or what it is to be made of; None where the checkpoint makes one up.

        Raises:
            InvalidRequest: there is no such voice, or it is not said clearly.
        """
        given = [field for field in _RECORDINGS if getattr(body, field)]
        if len(given) > 1:
            raise InvalidRequest(f"'{given[0]}' and '{given[1]}' exclude each other.", given[1])
        if not given and body.ref_text is not None:
            raise InvalidRequest("'ref_text' needs 'ref_audio'.", "ref_text")
        if given:
            required = self._config.require_consent
            check_consent(body.consent, self._library.known, self.caller, required)
            if given == ["speaker_embedding"]:
                return OfVector(body.speaker_embedding)
            return _recording(body, given[0], card)
        name = (body.voice or "").strip()
        if name and self.is_stored(name):
            return self._of_library(name, body.x_vector_only_mode is True, card)
        if "named" in card.voice_sources:
            voice = find_voice(body.voice, card)
            if voice is None:
                self._refuse(body.voice, card)
            return NamedVoice(voice)
        if "sample" in card.voice_sources:
            self._refuse(body.voice, card)
        # OpenAI's clients cannot leave the name out; a designed voice has none.
        return None

    async def made(self, wanted: Wanted, card: ModelCard) -> Voice:
        """
        Raises:
            InvalidRequest: the model cannot speak with it, or what came is no recording.
            Overloaded, StageUnavailable, StageFailed: it cannot be made at the moment.
        """
        match wanted:
            case OfVector():
                return self._maker.of_vector(wanted.values, card, "speaker_embedding")
            case OfRecording():
                read = await self._read(wanted, card)
                return await self._maker.of_recording(read, wanted.text, card, wanted.param)
            case OfLibrary(parts=((voice, _),)):
                return await self._maker.stored(voice, card, wanted.x_vector_only)
            case OfLibrary():
                return await self._maker.blended(wanted.parts, card)

    async def _read(self, wanted: OfRecording, card: ModelCard) -> Callable[[], bytes]:
        source, param = wanted.source, wanted.param
        if isinstance(source, bytes):
            return lambda: source
        if card.speaker_vector_size is not None and source[:8].lower() == "https://":
            data = await self._fetcher.fetch(source, param)
            return lambda: data
        limit = self._config.max_upload_bytes
        return lambda: decoded_base64(source, param, limit)

    def _of_library(self, name: str, x_vector_only: bool, card: ModelCard) -> OfLibrary:
        snapshot, who = self._library.known, self.caller
        parts: dict[str, tuple[StoredVoice, float]] = {}
        for part, weight in blend_of(name):
            voice = snapshot.find(part, who)
            if not isinstance(voice, StoredVoice):
                self._library.require()
                what = "is a speaker of the model" if voice else "does not exist"
                raise InvalidRequest(
                    f"The voice '{part}' {what}; voices of the library can be blended.",
                    "voice",
                    "voice_not_found",
                )
            before = parts.get(voice.id, (voice, 0.0))[1]
            parts[voice.id] = (voice, before + weight)
            self._check_stored(voice, snapshot, card)
        return OfLibrary(tuple(parts.values()), x_vector_only)

    def _check_stored(self, voice: StoredVoice, snapshot: Snapshot, card: ModelCard) -> None:
        is_somebodys = self._config.require_consent and voice.source != "prompt"
        if is_somebodys and voice.consent not in snapshot.consents:
            raise InvalidRequest(
                "There is no consent to this voice, or it has been withdrawn.",
                "voice",
                "consent_required",
            )
        if voice.transcript:
            refuse_controls(voice.transcript, "voice", card)

    def _refuse(self, name: str | None, card: ModelCard) -> NoReturn:
        """Say which voices there are."""
        self._library.require()
        stored = [voice.name for voice in self._library.known.open_to(self.caller)]
        shown = ", ".join(stored[:_LISTED]) + (", ..." if len(stored) > _LISTED else "")
        library = f" Voices of the library: {shown}." if stored else ""
        if "named" in card.voice_sources:
            message = (
                f"The voice '{name}' does not exist. Voices of '{card.name}':"
                f" {', '.join(card.voices)}; OpenAI's names: {', '.join(VOICE_ALIASES)}.{library}"
            )
        else:
            message = (
                f"The model '{card.name}' clones voices and has none of its own: state a 'voice' of"
                f" the library, or bring 'ref_audio'.{library}"
            )
        raise InvalidRequest(message, "voice", "voice_not_found")


def caller(config: VoicesConfig) -> Caller:
    """Whose request this task works on."""
    key = current().key
    return Caller(key, key is not None and key in config.admins)


def is_blend(name: str) -> bool:
    return "+" in name or "(" in name


def blend_of(name: str) -> list[tuple[str, float]]:
    """The names in `a+b` or `a(2)+b(0.5)`, with their weights; of a name, the name.

    Raises:
        InvalidRequest: it is no blend.
    """
    if not is_blend(name):
        return [(name, 1.0)]
    found = [_PART.fullmatch(part.strip()) for part in name.split("+", MAX_BLENDED - 1)]
    parts = [(part[1].strip(), float(part[2] or 1)) for part in found if part is not None]
    if len(parts) != len(found) or not all(
        each and 0 < weight <= MAX_WEIGHT for each, weight in parts
    ):
        raise InvalidRequest(
            f"'voice' is no blend: up to {MAX_BLENDED} names with weights, as in 'a(2)+b(1)'.",
            "voice",
        )
    return parts


def _recording(body: SpeechBody, field: str, card: ModelCard) -> OfRecording:
    if field == "references":
        audio, text = _reference(body.references)
    else:
        audio, text = body.ref_audio, body.ref_text
    if isinstance(audio, list) and len(audio) == 1:
        audio = audio[0]
    if not isinstance(audio, str | bytes):
        raise InvalidRequest(f"'{field}' must be one recording, as base64 or a data URL.", field)
    if text is not None and not isinstance(text, str):
        raise InvalidRequest("'ref_text' must be a string.", "ref_text")
    text = (text or "").strip() or None
    if text is None and body.x_vector_only_mode is False:
        raise InvalidRequest("'ref_text' is needed unless x_vector_only_mode is set.", "ref_text")
    if text is not None:
        check_string(text, "ref_text", card, MAX_TEXT_CHARS)
    return OfRecording(audio, None if body.x_vector_only_mode else text, field)


def _reference(references: Any) -> tuple[Any, Any]:
    """The one recording of sglang-omni's `references`, and its text."""
    if not isinstance(references, list) or len(references) != 1:
        raise InvalidRequest("'references' must have exactly one recording.", "references")
    one = references[0]
    if not isinstance(one, Mapping):
        raise InvalidRequest("'references' must be a list of objects.", "references")
    return one.get("audio_path") or one.get("audio") or one.get("ref_audio"), one.get("text")


def decoded_base64(source: str, param: str, max_bytes: int) -> bytes:
    """The file in a data URL, or in bare base64.

    Raises:
        InvalidRequest: it is neither, or too large.
    """
    head = _DATA_URL.match(source[:1024])
    if head is None and ":" in source[:16]:
        raise InvalidRequest(
            f"'{param}' must be base64 or a data URL; of other addresses only https, where the"
            " operator allows it.",
            param,
            "url_not_allowed",
        )
    text = source[head.end() if head else 0 :]
    if len(text) > max_bytes * 4 // 3 + 4096:
        megabytes = max_bytes / (1 << 20)
        raise InvalidRequest(
            f"'{param}' is larger than {megabytes:g} MiB.", param, "payload_too_large"
        )
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(f"'{param}' is not valid base64.", param, "invalid_audio") from error
