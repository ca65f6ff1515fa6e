"""What the OpenAPI document says of a route that reads its body itself."""

from collections.abc import Mapping
from typing import Any, Final

from serve_app.audio.formats import AudioFormat

Content = Mapping[str, Mapping[str, Any]]

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
# The content types of audio, without their parameters.
AUDIO: Final[Content] = {
    audio_format.content_type(24000).partition(";")[0]: _BINARY for audio_format in AudioFormat
}
EVENTS: Final[Content] = {"text/event-stream": {"schema": {"type": "string"}}}
JSON: Final[Content] = {"application/json": {"schema": {"type": "object"}}}
_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
# Of every route: instead of FastAPI's 422, which no client of OpenAI's reads.
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    "default": {
        "description": "OpenAI's error object",
        "content": {"application/json": {"schema": _ERROR}},
    }
}


def operation(
    schema: Mapping[str, Any], examples: Mapping[str, Any], answer: Content, status: int = 200
) -> dict[str, Any]:
    """`openapi_extra` of a route whose body is JSON of this schema."""
    values = {name: {"value": value} for name, value in examples.items()}
    body = {"application/json": {"schema": schema, "examples": values}}
    return {"requestBody": {"required": True, "content": body}, **responds(answer, status)}


def responds(content: Content, status: int = 200) -> dict[str, Any]:
    """`openapi_extra` of a route that reads no body."""
    return {"responses": {str(status): {"description": "Success", "content": content}}}
