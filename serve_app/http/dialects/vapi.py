"""Vapi's custom voice: its server sends what is to be said, and plays bare samples."""

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve_app.errors import InvalidRequest
from serve_app.http.document import AUDIO, operation
from serve_app.http.speech.endpoint import SpeechEndpoint

# What the address that Vapi is given may say besides; all of it is optional.
_OF_QUERY: Final = ("voice", "model", "language", "instructions")
_MESSAGE: Final[Mapping[str, Any]] = {
    "type": "object",
    "required": ["message"],
    "properties": {
        "message": {
            "type": "object",
            "required": ["type", "text"],
            "properties": {
                "type": {"const": "voice-request"},
                "text": {"type": "string"},
                "sampleRate": {"type": "integer", "default": 24000},
            },
        }
    },
}
_EXAMPLE: Final = {"message": {"type": "voice-request", "text": "Hello.", "sampleRate": 24000}}


def add_routes(app: FastAPI, endpoint: SpeechEndpoint) -> None:
    document = operation(_MESSAGE, {"a sentence": _EXAMPLE}, AUDIO)
    document["parameters"] = [
        {"name": name, "in": "query", "schema": {"type": "string"}} for name in _OF_QUERY
    ]

    @app.post("/vapi/tts", tags=["dialects"], response_class=Response, openapi_extra=document)
    async def speak_for_vapi(request: Request) -> Response:
        """A `voice-request` of Vapi: 16-bit samples at its rate, without a header."""
        query = {name: request.query_params.get(name) for name in _OF_QUERY}
        return await endpoint.respond(request, lambda body: {**query, **fields_of(body)})


def fields_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """
    Raises:
        InvalidRequest: it is no `voice-request`.
    """
    message = body.get("message")
    if not isinstance(message, dict) or message.get("type") != "voice-request":
        raise InvalidRequest("'message' must be an object of type 'voice-request'.", "message")
    return {
        "input": message.get("text"),
        "sample_rate": message.get("sampleRate"),
        "response_format": "pcm",
    }
