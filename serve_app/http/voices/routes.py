"""`/v1/audio/voices`: the library as OpenAI's and vllm-omni's clients know it, and what it does
besides.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, TypeVar
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve_app.audio import provenance
from serve_app.errors import InvalidRequest, NotFound
from serve_app.http.catalog import Catalog
from serve_app.http.catalog import voice_object as speaker_object
from serve_app.http.document import JSON, responds
from serve_app.http.errors import AsciiJSONResponse
from serve_app.http.names import find_voice
from serve_app.http.voices.desk import Desk
from serve_app.http.voices.document import ALIAS, CREATE, FLAC, UPDATE
from serve_app.http.voices.forms import read_form
from serve_app.http.voices.view import PATH, listed, uploaded_object, voice_object
from serve_app.types import ModelCard
from serve_app.voices.values import StoredVoice

T = TypeVar("T")

_ALIASES: Final = "/v1/audio/voice_aliases"
_DEFAULT: Final = "/v1/audio/default_voice"
# Recordings are of somebody: no proxy keeps them.
_PRIVATE: Final = {"Cache-Control": "private, no-store", "X-Content-Type-Options": "nosniff"}


def add_routes(app: FastAPI, desk: Desk, catalog: Catalog) -> None:
    created = int(time.time())
    max_bytes = desk.config.max_upload_bytes

    def route(
        method: str, path: str, document: Mapping[str, Any]
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return app.api_route(
            path,
            methods=[method],
            response_class=Response,
            tags=["voices"],
            openapi_extra=dict(document),
        )

    async def shown(voice: StoredVoice) -> dict[str, Any]:
        aliases = (await desk.library.now()).aliases_for(desk.caller)
        return voice_object(voice, aliases, desk.caller)

    def speaker_of(voice: str) -> tuple[str, ModelCard] | None:
        """A checkpoint's own voice of this name; the list has them among the library's."""
        if not voice.strip():
            return None
        found = ((find_voice(voice, card), card) for card in catalog.cards)
        return next(((name, card) for name, card in found if name is not None), None)

    async def of_library(call: Awaitable[T], voice: str) -> T:
        """What `call` gives; raises what it raises, and says so where `voice` is a speaker."""
        try:
            return await call
        except NotFound as error:
            speaker = speaker_of(voice)
            if speaker is None:
                raise
            name, card = speaker
            raise NotFound(
                f"'{name}' is a speaker of the model '{card.name}', not a voice of the library:"
                " it has no recording, and cannot be changed or deleted.",
                error.param,
                error.code,
            ) from error

    @route("GET", PATH, responds(JSON))
    @app.get(PATH.removeprefix("/v1"), include_in_schema=False)
    async def list_voices(legacy: bool = False) -> Response:
        """Speakers of the models, voices of the library, other names of both."""
        snapshot = await desk.library.now()
        return AsciiJSONResponse(listed(catalog.cards, snapshot, desk.caller, created, legacy))

    @route("POST", PATH, CREATE)
    async def create_voice(request: Request) -> Response:
        """Keep a voice: of a recording, of a speaker vector or of a description."""
        voice = await desk.create(await read_form(request, max_bytes))
        content = {"success": True, "voice": uploaded_object(voice)}
        return AsciiJSONResponse({**await shown(voice), **content})

    @route("GET", PATH + "/{voice}", responds(JSON))
    async def retrieve_voice(voice: str) -> Response:
        """A voice of the library by its id or name, or a speaker."""
        try:
            return AsciiJSONResponse(await shown(await desk.library.get(voice, desk.caller)))
        except NotFound:
            speaker = speaker_of(voice)
            if speaker is None:
                raise
            return AsciiJSONResponse(speaker_object(*speaker, created))

    @route("POST", PATH + "/{voice}", UPDATE)
    async def update_voice(request: Request, voice: str) -> Response:
        """Another name, transcript, language or description; whether it is shared."""
        form = await read_form(request, max_bytes)
        return AsciiJSONResponse(await shown(await of_library(desk.change(voice, form), voice)))

    @route("DELETE", PATH + "/{voice}", responds(JSON))
    async def delete_voice(voice: str) -> Response:
        gone = await of_library(desk.delete(voice), voice)
        content = {"id": gone.id, "object": "audio.voice.deleted", "deleted": True}
        return AsciiJSONResponse({**content, "success": True, "name": gone.name})

    @route("GET", PATH + "/{voice}/preview", responds(FLAC))
    async def preview_voice(voice: str) -> Response:
        """The recording, to be played."""
        return flac(*await of_library(desk.recording(voice), voice), is_kept=False)

    @route("GET", PATH + "/{voice}/download", responds(FLAC))
    async def download_voice(voice: str) -> Response:
        """The recording as the library has it."""
        return flac(*await of_library(desk.recording(voice), voice))

    @route("GET", _ALIASES, responds(JSON))
    async def list_aliases() -> Response:
        aliases = (await desk.library.now()).aliases_for(desk.caller)
        data = [{"alias": alias.name, "voice": alias.target} for alias in aliases]
        return AsciiJSONResponse({"object": "list", "data": data})

    @route("PUT", _ALIASES + "/{alias}", ALIAS)
    async def set_alias(request: Request, alias: str) -> Response:
        """Another name for a voice; OpenAI's names may be given as well."""
        form = await read_form(request, max_bytes)
        made = await desk.set_alias(alias, _required(form.text("voice"), "voice"))
        return AsciiJSONResponse({"alias": made.name, "voice": made.target})

    @route("DELETE", _ALIASES + "/{alias}", responds(JSON))
    async def delete_alias(alias: str) -> Response:
        await desk.drop_alias(alias)
        return AsciiJSONResponse({"alias": alias, "deleted": True})

    @route("GET", _DEFAULT, responds(JSON))
    async def show_default() -> Response:
        """The voice that answers where none is named; null: a speaker of the model."""
        voice = (await desk.library.now()).find(None, desk.caller)
        found = await shown(voice) if isinstance(voice, StoredVoice) else None
        return AsciiJSONResponse({"voice": found})

    @route("PUT", _DEFAULT, responds(JSON))
    async def set_default(request: Request) -> Response:
        form = await read_form(request, max_bytes)
        voice = await desk.set_default(_required(form.text("voice"), "voice"))
        return AsciiJSONResponse({"voice": None if voice is None else await shown(voice)})

    @route("DELETE", _DEFAULT, responds(JSON))
    async def delete_default() -> Response:
        await desk.set_default(None)
        return AsciiJSONResponse({"voice": None})


def flac(voice: StoredVoice, recording: bytes, is_kept: bool = True) -> Response:
    """A recording, as a file to be kept or to be played; its name is the voice's, encoded."""
    name = quote(f"{voice.name}.flac", safe="")
    kind = "attachment" if is_kept else "inline"
    disposition = f"{kind}; filename=\"{voice.id}.flac\"; filename*=UTF-8''{name}"
    made_here = provenance.HEADERS if voice.source == "prompt" else {}
    headers = {**_PRIVATE, **made_here, "Content-Disposition": disposition}
    return Response(recording, headers=headers, media_type="audio/flac")


def _required(value: str | None, param: str) -> str:
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param)
    return value
