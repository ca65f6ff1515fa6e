"""The JSON body of `POST /v1/audio/speech`: its fields, their types and ranges.

Names follow OpenAI's API reference; the extensions are the ones that self-hosted servers and the
Qwen3-TTS package agree on. What the served models can do is checked in `checks`.
"""

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, Final, get_args

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serve_app.audio.filters import MAX_SPEED, MIN_SPEED
from serve_app.errors import InvalidRequest

# Of a voice in a blend.
MAX_WEIGHT: Final = 1000
MAX_SEED: Final = (1 << 63) - 1
# What of `extra_params` counts, where the request itself does not state it.
_EXTRA: Final = (
    *("do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed"),
    *("subtalker_dosample", "subtalker_temperature", "subtalker_top_k", "subtalker_top_p"),
    *("max_new_tokens", "min_new_tokens", "non_streaming_mode"),
)
# Unknown fields that are compared with those that there are, their length, and from when on they
# are alike.
_MOST_UNKNOWN: Final = 8
_LONGEST_NAME: Final = 40
_ALIKE: Final = 0.85
# What else clients call formats.
_FORMAT_ALIASES: Final = {"ogg": "opus", "mpeg": "mp3", "pcm16": "pcm"}
# Below this a division of the logits leaves float32.
_MIN_TEMPERATURE: Final = 0.01


def _voice_name(value: Any) -> Any:
    """Take the id out of OpenAI's voice object; write a blend as the text that it also may be."""
    if not isinstance(value, dict):
        return value
    if "blend" not in value:
        if "id" not in value:
            raise ValueError("must be a name, or an object with 'id' or 'blend'")
        return value["id"]
    parts = value["blend"]
    if not isinstance(parts, list) or not all(_is_part(part) for part in parts):
        raise ValueError("'blend' must be a list of objects with 'voice' and 'weight'")
    return "+".join(f"{part['voice']}({part.get('weight', 1):.6f})" for part in parts)


def _is_part(part: Any) -> bool:
    if not isinstance(part, dict) or not isinstance(part.get("voice"), str):
        return False
    weight = part.get("weight", 1)
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    return is_number and 0 < weight <= MAX_WEIGHT and not set(part["voice"]) & set("()+")


def _seed(value: Any) -> Any:
    """User interfaces say -1 where they want any."""
    return None if value == -1 else value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _format_name(value: Any) -> Any:
    name = _lower(value)
    return _FORMAT_ALIASES.get(name, name) if isinstance(name, str) else name


def _temperature(value: Any) -> Any:
    if isinstance(value, int | float) and 0 < value < _MIN_TEMPERATURE:
        raise ValueError(f"must be 0 (greedy) or at least {_MIN_TEMPERATURE}")
    return value


Temperature = Annotated[float, Field(ge=0, le=2), BeforeValidator(_temperature)]
TopK = Annotated[int, Field(ge=0, le=1 << 30)]
TopP = Annotated[float, Field(gt=0, le=1)]
Keyword = Annotated[str, BeforeValidator(_lower)]
FormatName = Annotated[str, BeforeValidator(_format_name)]


class SpeechBody(BaseModel):
    """The JSON body of `POST /v1/audio/speech`; null means absent, unknown fields are ignored.

    `stream` is true by default: the bytes are sent while they are made; false sends one file of
    known length. `non_streaming_mode` keeps the name it has in the Qwen3-TTS package and has
    nothing to do with the response: it chooses whether the model sees the whole text at once. As
    there, it does by default unless the voice is cloned.
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
    response_format: FormatName | None = None
    # Together's, for its format `raw`.
    response_encoding: Keyword | None = None
    stream_format: Keyword | None = None
    stream: bool | None = None
    speed: float | None = Field(None, ge=MIN_SPEED, le=MAX_SPEED)
    sample_rate: int | None = Field(None, ge=1)
    seed: Annotated[Annotated[int, Field(ge=0, le=MAX_SEED)] | None, BeforeValidator(_seed)] = None
    do_sample: bool | None = None
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    repetition_penalty: float | None = Field(None, ge=0.1, le=10)
    subtalker_dosample: bool | None = None
    subtalker_temperature: Temperature | None = None
    subtalker_top_k: TopK | None = None
    subtalker_top_p: TopP | None = None
    # What vllm-omni's clients nest; `parse` takes out what `_EXTRA` names.
    extra_params: Any = None
    max_new_tokens: int | None = Field(
        None, ge=1, validation_alias=AliasChoices("max_new_tokens", "max_tokens")
    )
    min_new_tokens: int | None = Field(None, ge=0)
    non_streaming_mode: bool | None = None
    # Kokoro's; of its keys only `normalize` has a meaning here.
    normalization_options: Any = None
    # A voice that comes with the request; `http/speech/voice` reads these.
    ref_audio: Any = None
    ref_text: Any = None
    references: Any = None
    speaker_embedding: Any = None
    x_vector_only_mode: bool | None = None
    word_timestamps: bool | None = None
    consent: str | None = None


def _kind(annotation: Any) -> type | None:
    """bool, int or float, where a field is one."""
    if annotation in (bool, int, float):
        return annotation
    return next(filter(None, map(_kind, get_args(annotation))), None)


_KINDS: Final = {name: _kind(field.annotation) for name, field in SpeechBody.model_fields.items()}
_KINDS["max_tokens"] = int
_FLAGS: Final = {"true": True, "false": False}


def _read(name: str, value: Any) -> Any:
    """A number or a flag that came as a string, as forms and no-code tools send them; what is no
    such thing stays as it is, to be refused.
    """
    kind = _KINDS.get(name)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is None or not isinstance(value, str):
        return value
    if kind is bool:
        return _FLAGS.get(value.strip().lower(), value)
    try:
        return int(value) if kind is int else float(value)
    except ValueError:
        return value


def read_json(raw: bytes) -> Mapping[str, Any]:
    """The fields of a request body.

    Raises:
        InvalidRequest: not a JSON object.
    """
    if not raw.strip():
        raise InvalidRequest("The request body is empty; it must be a JSON object.")
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON{_fault(error)}.") from error
    if not isinstance(data, dict):
        raise InvalidRequest("The request body must be a JSON object.")
    return data


def _fault(error: Exception) -> str:
    """Where it is wrong: a shell's quotes are most often to blame."""
    match error:
        case json.JSONDecodeError():
            return f": {error.msg} (line {error.lineno}, column {error.colno})"
        case UnicodeDecodeError():
            return ": it is not UTF-8"
        case _:
            return ""


def _names() -> frozenset[str]:
    """All that a field may be called."""
    names = set(SpeechBody.model_fields)
    for field in SpeechBody.model_fields.values():
        if isinstance(field.validation_alias, AliasChoices):
            names.update(str(name) for name in field.validation_alias.choices)
    return frozenset(names)


_NAMES: Final = _names()


def misspelt(fields: Mapping[str, Any]) -> Iterator[str]:
    """Say which unknown fields are almost those that there are; of others nothing is said, since
    clients of other servers send theirs.
    """
    unknown = (name for name in fields if name not in _NAMES and len(name) <= _LONGEST_NAME)
    for name in islice(unknown, _MOST_UNKNOWN):
        meant = _meant(name)
        if meant is not None and meant not in fields:
            yield f"unknown field '{name}' ignored, is '{meant}' meant?"


@lru_cache(maxsize=256)
def _meant(name: str) -> str | None:
    """Cached, since to compare takes some 0.3 ms, and a client sends the same ever again."""
    if not (name.isascii() and name.isidentifier()):  # it goes into a header
        return None
    return next(iter(get_close_matches(name, _NAMES, 1, _ALIKE)), None)


def parse(fields: Mapping[str, Any]) -> SpeechBody:
    """Check the fields of a request by themselves.

    Raises:
        InvalidRequest: one is of the wrong type or out of range.
    """
    nested = fields.get("extra_params") or {}
    if not isinstance(nested, Mapping):
        raise InvalidRequest("'extra_params' must be an object.", "extra_params")
    stated = {name for name, value in fields.items() if value is not None}
    if "max_tokens" in stated:  # another name of it
        stated.add("max_new_tokens")
    fields = {**fields, **{name: nested[name] for name in _EXTRA if name in nested.keys() - stated}}
    try:
        return SpeechBody.model_validate(
            {name: _read(name, value) for name, value in fields.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "missing":
            raise InvalidRequest(f"Missing required parameter: '{param}'.", param) from error
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"Invalid value for '{param}': {reason}.", param) from error
