"""`POST /v1/audio/speech/upload`: speech with a recording in one form, as chatterbox has it."""

import contextlib
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve_app.http.document import AUDIO, EVENTS
from serve_app.http.speech.accept import Checked, Speech
from serve_app.http.speech.endpoint import SpeechEndpoint
from serve_app.http.voices.document import speech_form
from serve_app.http.voices.forms import Form, read_form

_FILES: Final = ("voice_file", "ref_audio", "audio_sample", "file")
_NUMBERS: Final = frozenset(
    (
        *("speed", "sample_rate", "seed", "temperature", "top_k", "top_p", "repetition_penalty"),
        *("max_new_tokens", "max_tokens", "min_new_tokens"),
    )
)
_FLAGS: Final = frozenset(("stream", "do_sample", "x_vector_only_mode", "non_streaming_mode"))


def add_routes(app: FastAPI, speech: Speech, endpoint: SpeechEndpoint, max_file_bytes: int) -> None:
    path = "/v1/audio/speech/upload"
    document = speech_form({**AUDIO, **EVENTS})

    @app.post(path, tags=["voices"], response_class=Response, openapi_extra=document)
    @app.post(path.removeprefix("/v1"), include_in_schema=False)
    async def create_speech_with_recording(request: Request) -> Response:
        """Speak with the voice of a recording that comes in the same form, and is not kept."""

        async def read() -> Checked:
            form = await read_form(request, max_file_bytes)
            return await speech.checked(_fields(form), request.headers.get("x-request-id"))

        return await endpoint.answer(request, read)


def _fields(form: Form) -> Mapping[str, Any]:
    """The fields of `SpeechBody`; in a form all are text."""
    fields = dict(form.fields)
    for name in _NUMBERS & fields.keys():
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            number = float(fields[name])
            fields[name] = int(number) if number.is_integer() else number
    for name in _FLAGS & fields.keys():
        fields[name] = form.flag(name)
    found = form.file(*_FILES)
    if found is not None:
        fields["ref_audio"] = found[1]
    return fields
