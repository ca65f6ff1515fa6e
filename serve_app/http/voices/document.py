"""What the OpenAPI document says of voices: forms, their examples, answers."""

from collections.abc import Mapping
from typing import Any, Final

from serve_app.http.document import JSON, Content, responds
from serve_app.http.speech.document import FIELDS

FLAC: Final[Content] = {"audio/flac": {"schema": {"type": "string", "format": "binary"}}}
_TEXT: Final = {"type": "string"}
_FILE: Final = {"type": "string", "format": "binary"}


def form(
    properties: Mapping[str, Any],
    required: tuple[str, ...],
    examples: Mapping[str, Mapping[str, str]],
    answer: Content = JSON,
) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a form; examples name a file as `@voice.wav`."""
    schema = {"type": "object", "required": list(required), "properties": dict(properties)}
    values = {name: {"value": dict(value)} for name, value in examples.items()}
    body = {"multipart/form-data": {"schema": schema, "examples": values}}
    return {"requestBody": {"required": True, "content": body}, **responds(answer)}


_FACTS: Final = {
    "ref_text": {**_TEXT, "description": "what is said in the recording"},
    "language": _TEXT,
    "speaker_description": _TEXT,
    "shared": {"type": "boolean", "description": "whether other keys may speak with it"},
}
CREATE: Final = form(
    {
        "name": _TEXT,
        "audio_sample": {**_FILE, "description": "1 to 30 s: WAV, MP3, FLAC, Ogg, M4A, WebM, AAC"},
        **_FACTS,
        "consent": {**_TEXT, "description": "the id of a record of /v1/audio/voice_consents"},
        "speaker_embedding": {**_TEXT, "description": "a JSON list, instead of a recording"},
        "type": {"enum": ["audio_sample", "prompt"]},
        "prompt": {**_TEXT, "description": "of type prompt: what the voice is like"},
        "script_hint": {**_TEXT, "description": "of type prompt: what it says first"},
    },
    ("name",),
    {
        "a recording": {"name": "Anna", "audio_sample": "@voice.wav"},
        "with what it says": {
            "name": "Anna",
            "audio_sample": "@voice.wav",
            "ref_text": "Good morning, how are you?",
            "language": "en",
        },
        "a vector": {"name": "Anna", "speaker_embedding": "[0.1, -0.2, 0.3]"},
    },
)
UPDATE: Final = form(
    {"name": _TEXT, **_FACTS}, (), {"a name": {"name": "Berta"}, "a text": {"ref_text": "Hello."}}
)
ALIAS: Final = form(
    {"voice": {**_TEXT, "description": "id or name of a voice, or a speaker"}},
    ("voice",),
    {"a speaker": {"voice": "serena"}},
)
CONSENT: Final = form(
    {"name": _TEXT, "language": {**_TEXT, "description": "BCP 47, as en-US"}, "recording": _FILE},
    ("name", "language", "recording"),
    {"a consent": {"name": "Anna", "language": "en-US", "recording": "@consent.wav"}},
)


def speech_form(answer: Content) -> dict[str, Any]:
    """The fields of a speech request as a form, and a file."""
    properties = {**FIELDS["properties"], "voice_file": {**_FILE, "description": "the recording"}}
    examples = {"without a recording": {"input": "Hello.", "voice": "alloy"}}
    found = form(properties, ("input",), examples, answer)
    content = found["requestBody"]["content"]["multipart/form-data"]
    content["schema"] = {**FIELDS, **content["schema"]}
    return found
