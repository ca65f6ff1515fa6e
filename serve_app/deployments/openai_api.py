"""OpenAI's speech API as values: the request body, its checks, the lists, and the shape of errors.

A body passes three gates, each of which answers 400 with the name of the field: JSON (`parse`),
types and ranges (`SpeechBody`), and what the served models can do (`to_domain`). Past them a
request is valid by construction. Names and codes follow OpenAI's API reference; the extensions
are the ones that self-hosted servers and the Qwen3-TTS package agree on.
"""

import json
import math
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi.responses import JSONResponse
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException

from serve_app.audio import AudioFormat
from serve_app.config import IngressConfig
from serve_app.errors import (
    InvalidRequest,
    Overloaded,
    SpeechError,
    StageUnavailable,
    UnknownModel,
)
from serve_app.types import ModelCard, SamplingOverrides, SpeechRequest

MAX_BODY_BYTES: Final = 1 << 20
# OpenAI's limit on `instructions`.
_MAX_INSTRUCTION_CHARS: Final = 4096
_MAX_SEED: Final = (1 << 63) - 1
# Below this a division of the logits leaves float32.
_MIN_TEMPERATURE: Final = 0.01

MODEL_ALIASES: Final = (
    "tts-1",
    "tts-1-hd",
    "gpt-4o-mini-tts",
    "gpt-4o-mini-tts-2025-12-15",
    "qwen3-tts",
)
# OpenAI's voice names, and the Qwen speaker that comes nearest.
VOICE_ALIASES: Final = {
    "alloy": "vivian",
    "ash": "aiden",
    "ballad": "ryan",
    "cedar": "uncle_fu",
    "coral": "serena",
    "echo": "ryan",
    "fable": "aiden",
    "marin": "serena",
    "nova": "vivian",
    "onyx": "uncle_fu",
    "sage": "sohee",
    "shimmer": "ono_anna",
    "verse": "aiden",
}
_DEFAULT_VOICE: Final = "alloy"
# ISO 639-1; a BCP 47 tag is looked up by its first part.
_LANGUAGE_CODES: Final = {
    "zh": "chinese",
    "en": "english",
    "ja": "japanese",
    "ko": "korean",
    "de": "german",
    "fr": "french",
    "ru": "russian",
    "pt": "portuguese",
    "es": "spanish",
    "it": "italian",
}
# The tokenizer would read these as its control tokens instead of as text.
_CONTROL_STRING: Final = re.compile(r"<\|[A-Za-z0-9_]+\|>|<tts_[a-z_]+>")
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_CLONE_FIELDS: Final = ("ref_audio", "ref_text", "references", "speaker_embedding")


def _voice_name(value: Any) -> Any:
    """Take the id out of OpenAI's voice object."""
    return value.get("id", value) if isinstance(value, dict) else value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _temperature(value: Any) -> Any:
    if isinstance(value, int | float) and 0 < value < _MIN_TEMPERATURE:
        raise ValueError(f"must be 0 (greedy) or at least {_MIN_TEMPERATURE}")
    return value


Temperature = Annotated[float, Field(ge=0, le=2), BeforeValidator(_temperature)]
TopK = Annotated[int, Field(ge=0, le=1 << 30)]
TopP = Annotated[float, Field(gt=0, le=1)]
Keyword = Annotated[str, BeforeValidator(_lower)]


class SpeechBody(BaseModel):
    """The JSON body of `POST /v1/audio/speech`; null means absent, unknown fields are ignored.

    `response_format` defaults to wav while OpenAI's default, mp3, is not available. `stream` is
    true by default: the bytes are sent while they are made; false sends one file of known length.
    `non_streaming_mode` keeps the name it has in the Qwen3-TTS package and has nothing to do with
    the response: it chooses whether the model sees the whole text at once.
    """

    model_config = ConfigDict(
        strict=True, extra="ignore", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )

    input: str
    model: str | None = None
    voice: Annotated[str | None, BeforeValidator(_voice_name)] = Field(
        None, validation_alias=AliasChoices("voice", "speaker", "voice_id")
    )
    instructions: str | None = Field(
        None, validation_alias=AliasChoices("instructions", "instruct")
    )
    language: Keyword | None = Field(
        None, validation_alias=AliasChoices("language", "lang_code", "lang", "language_type")
    )
    task_type: str | None = None
    response_format: Keyword | None = None
    stream_format: Keyword | None = None
    stream: bool | None = None
    speed: float | None = None
    sample_rate: int | None = None
    seed: int | None = Field(None, ge=0, le=_MAX_SEED)
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    subtalker_dosample: bool | None = None
    subtalker_temperature: Temperature | None = None
    subtalker_top_k: TopK | None = None
    subtalker_top_p: TopP | None = None
    max_new_tokens: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("max_new_tokens", "max_tokens")
    )
    min_new_tokens: int | None = Field(None, ge=0)
    non_streaming_mode: bool | None = None
    ref_audio: Any = None
    ref_text: Any = None
    references: Any = None
    speaker_embedding: Any = None

    @property
    def audio_format(self) -> AudioFormat:
        """The format to answer in; `to_domain` has refused the ones that are not served."""
        return AudioFormat(self.response_format or AudioFormat.WAV)


def parse(raw: bytes) -> SpeechBody:
    """Read a request body.

    Raises:
        InvalidRequest: not JSON, or a field of the wrong type or out of range.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The request body is not valid JSON.") from error
    if not isinstance(data, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    try:
        return SpeechBody.model_validate({k: v for k, v in data.items() if v is not None})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "missing":
            raise InvalidRequest(f"Missing required parameter: '{param}'.", param) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"Invalid value for '{param}': {reason}.", param) from error


def to_domain(
    body: SpeechBody, cards: Sequence[ModelCard], limits: IngressConfig, request_id: str
) -> SpeechRequest:
    """Turn a body into the request that the stages see.

    Raises:
        UnknownModel: no served model has this name.
        InvalidRequest: the model cannot do what the body asks for.
    """
    card = _card(body, cards)
    _refuse_unavailable(body, card)
    instructions = _instructions(body, card)
    talker, subtalker = _sampling(body)
    _check_tokens(body, card)
    return SpeechRequest(
        request_id=request_id,
        model=card.name,
        text=_text(body.input, limits.max_input_chars),
        voice=None if card.task == "voice_design" else _voice(body.voice, card),
        language=_language(body.language, card),
        seed=secrets.randbelow(_MAX_SEED) if body.seed is None else body.seed,
        instructions=instructions,
        streaming_text=body.non_streaming_mode is False,
        talker=talker,
        subtalker=subtalker,
        min_new_tokens=body.min_new_tokens,
        max_new_tokens=body.max_new_tokens,
    )


def ignored(body: SpeechBody, request: SpeechRequest) -> str | None:
    """Say what the model does not act on, for the `X-Warning` header."""
    if _stated(body.instructions) is not None and request.instructions is None:
        return "instructions ignored: this model does not follow instructions"
    return None


def engine_request_id(client_id: str | None) -> str:
    """The client's id where it is well-formed, else a new one, with a suffix that makes it unique.

    Two requests of one client may carry one id; in an engine they must not meet.
    """
    valid = client_id is not None and _REQUEST_ID.fullmatch(client_id)
    return f"{client_id if valid else uuid.uuid4().hex}-{secrets.token_hex(4)}"


def find_card(name: str, cards: Sequence[ModelCard]) -> ModelCard | None:
    """The card of a model name: the served name, the hub id or folder, or one of OpenAI's names.

    OpenAI's names stand for the first card.
    """
    wanted = name.strip().casefold()
    for card in cards:
        path = card.path.rstrip("/")
        if wanted in {card.name.casefold(), path.casefold(), path.rsplit("/", 1)[-1].casefold()}:
            return card
    return cards[0] if wanted in MODEL_ALIASES else None


def _card(body: SpeechBody, cards: Sequence[ModelCard]) -> ModelCard:
    task = re.sub(r"[^a-z]", "", body.task_type.lower()) if body.task_type else None
    if not body.model or not body.model.strip():
        # Without a name the task may choose.
        card = next((c for c in cards if task == _task_key(c)), cards[0])
    else:
        found = find_card(body.model, cards)
        if found is None:
            served = ", ".join(card.name for card in cards)
            raise UnknownModel(
                f"The model '{body.model}' does not exist. Served here: {served}.",
                "model",
                "model_not_found",
            )
        card = found
    if task is not None and task != _task_key(card):
        raise InvalidRequest(
            f"The model '{card.name}' does {_TASK_NAMES[card.task]}, not '{body.task_type}'.",
            "task_type",
        )
    return card


_TASK_NAMES: Final = {"custom_voice": "CustomVoice", "voice_design": "VoiceDesign", "base": "Base"}


def _task_key(card: ModelCard) -> str:
    return card.task.replace("_", "")


def _refuse_unavailable(body: SpeechBody, card: ModelCard) -> None:
    """Refuse what other servers have and this one does not: silence would give the wrong audio."""
    formats = [str(served) for served in AudioFormat]
    if body.response_format and body.response_format not in formats:
        raise InvalidRequest(
            f"The response_format '{body.response_format}' is not available yet;"
            f" available: {', '.join(formats)}.",
            "response_format",
            "unsupported_format",
        )
    if body.stream_format not in (None, "audio"):
        raise InvalidRequest(
            f"The stream_format '{body.stream_format}' is not available yet; available: audio.",
            "stream_format",
            "unsupported_format",
        )
    if body.speed not in (None, 1.0):
        raise InvalidRequest("A speed other than 1.0 is not available yet.", "speed")
    if body.sample_rate not in (None, card.sample_rate_hz):
        raise InvalidRequest(
            f"A sample_rate other than {card.sample_rate_hz} is not available yet.", "sample_rate"
        )
    for field in _CLONE_FIELDS:
        if getattr(body, field):
            raise InvalidRequest(f"Voice cloning ('{field}') is not available yet.", field)
    if card.task == "base":
        raise InvalidRequest(
            f"The model '{card.name}' only clones voices, which is not available yet.", "model"
        )


def _text(value: str, max_chars: int) -> str:
    text = value.strip()
    if not text:
        raise InvalidRequest("'input' must not be empty.", "input", "empty_string")
    _check_string(text, "input", max_chars)
    return text


def _check_string(text: str, param: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise InvalidRequest(
            f"'{param}' has {len(text)} characters, at most {max_chars} are allowed.",
            param,
            "string_above_max_length",
        )
    found = _CONTROL_STRING.search(text)
    if found:
        raise InvalidRequest(
            f"'{param}' contains the control string '{found.group()}' of the model.", param
        )
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidRequest(f"'{param}' is not valid Unicode: half of a surrogate pair.", param)


def _stated(instructions: str | None) -> str | None:
    """Instructions that say something; Home Assistant sends "None" where the user gave none."""
    text = (instructions or "").strip()
    return None if text in ("", "None") else text


def _instructions(body: SpeechBody, card: ModelCard) -> str | None:
    text = _stated(body.instructions)
    if text is not None:
        _check_string(text, "instructions", _MAX_INSTRUCTION_CHARS)
    elif card.task == "voice_design":
        raise InvalidRequest(
            f"The model '{card.name}' needs 'instructions' that describe the voice.",
            "instructions",
        )
    return text if card.supports_instructions else None


def _voice(name: str | None, card: ModelCard) -> str:
    wanted = (name or "").strip().casefold()
    voices = {voice.casefold(): voice for voice in card.voices}
    if wanted in voices:
        return voices[wanted]
    if wanted in ("", "default"):
        wanted = _DEFAULT_VOICE
    alias = alias_target(wanted, card)
    if alias is None:
        raise InvalidRequest(
            f"The voice '{name}' does not exist. Voices of '{card.name}':"
            f" {', '.join(card.voices)}; OpenAI's names: {', '.join(VOICE_ALIASES)}.",
            "voice",
            "voice_not_found",
        )
    return alias


def alias_target(name: str, card: ModelCard) -> str | None:
    """The voice of `card` that one of OpenAI's names stands for, or None.

    A checkpoint without the usual speakers gives each name a fixed one of its own.
    """
    if name not in VOICE_ALIASES or not card.voices:
        return None
    voices = {voice.casefold(): voice for voice in card.voices}
    position = list(VOICE_ALIASES).index(name)
    return voices.get(VOICE_ALIASES[name], card.voices[position % len(card.voices)])


def _language(name: str | None, card: ModelCard) -> str:
    if not name or name == "auto":
        return "auto"
    served = {language.casefold(): language for language in card.languages}
    code = re.split(r"[-_]", name)[0]
    for candidate in (name, _LANGUAGE_CODES.get(code, "")):
        if candidate in served:
            return served[candidate]
    languages = ", ".join(["auto", *(known for known in card.languages if known != "auto")])
    raise InvalidRequest(
        f"The language '{name}' is not supported by '{card.name}'. Supported: {languages}.",
        "language",
    )


def _sampling(body: SpeechBody) -> tuple[SamplingOverrides, SamplingOverrides]:
    """The overrides of the talker and of the code predictor.

    Greedy means both, unless the request says something of its own for the code predictor.
    """
    temperature = 0.0 if body.do_sample is False else body.temperature
    talker = SamplingOverrides(temperature, body.top_k, body.top_p, body.repetition_penalty)
    own = (body.subtalker_temperature, body.subtalker_top_k, body.subtalker_top_p)
    sub_temperature = body.subtalker_temperature
    follows = body.subtalker_dosample is None and own == (None, None, None)
    if body.subtalker_dosample is False or (follows and temperature == 0):
        sub_temperature = 0.0
    subtalker = SamplingOverrides(sub_temperature, body.subtalker_top_k, body.subtalker_top_p)
    return talker, subtalker


def _check_tokens(body: SpeechBody, card: ModelCard) -> None:
    limit = card.max_new_tokens if body.max_new_tokens is None else body.max_new_tokens
    if limit > card.max_new_tokens:
        raise InvalidRequest(
            f"'max_new_tokens' is {limit}, at most {card.max_new_tokens} are allowed.",
            "max_new_tokens",
        )
    if body.min_new_tokens is not None and body.min_new_tokens > limit:
        raise InvalidRequest(
            f"'min_new_tokens' is {body.min_new_tokens}, more than the limit of {limit}.",
            "min_new_tokens",
        )


def error_response(error: Exception) -> JSONResponse:
    """The one table from exception to status and OpenAI's error object.

    The message of a failure inside is left out: it may name files, devices or addresses.
    """
    headers: dict[str, str] = {}
    param: str | None = None
    code: str | None
    match error:
        case UnknownModel():
            status, kind, code, param = 404, "invalid_request_error", error.code, error.param
        case InvalidRequest():
            status, kind, code, param = 400, "invalid_request_error", error.code, error.param
        case Overloaded():
            status, kind, code = 429, "rate_limit_error", "server_overloaded"
            headers = _retry_headers(error.retry_after_s)
        case StageUnavailable():
            status, kind, code = 503, "server_error", "service_unavailable"
            headers = _retry_headers(1.0)
        case SpeechError():
            status, kind, code = 500, "server_error", "generation_failed"
        case HTTPException():
            status, kind = error.status_code, "invalid_request_error"
            code = _HTTP_CODES.get(status)
            headers = dict(error.headers or {})
        case _:
            status, kind, code = 500, "server_error", "internal_error"
    return JSONResponse(
        {
            "error": {
                "message": _message(error, status),
                "type": kind,
                "param": param,
                "code": code,
            }
        },
        status,
        headers,
    )


_HTTP_CODES: Final = {404: "not_found", 405: "method_not_allowed", 413: "payload_too_large"}


def _message(error: Exception, status: int) -> str:
    if isinstance(error, HTTPException):
        return str(error.detail)
    if isinstance(error, InvalidRequest | Overloaded):
        return str(error)
    if status == 503:
        return "The speech service is not available at the moment. Please try again."
    return "The server failed to generate the speech."


def _retry_headers(seconds: float) -> dict[str, str]:
    return {
        "Retry-After": str(max(1, math.ceil(seconds))),
        "retry-after-ms": str(max(1, round(seconds * 1000))),
    }


def model_object(card: ModelCard, created: int) -> dict[str, Any]:
    """One entry of `GET /v1/models`; the fields after `owned_by` are extensions."""
    return {
        "id": card.name,
        "object": "model",
        "created": created,
        "owned_by": "qwen",
        "task": "text-to-speech",
        "task_type": _TASK_NAMES[card.task],
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
