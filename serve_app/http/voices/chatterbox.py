"""The voice library as clients of chatterbox-tts-api know it: `/voices`, by name."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from serve_app.errors import InvalidRequest, NotFound
from serve_app.http.errors import AsciiJSONResponse
from serve_app.http.voices.desk import Desk
from serve_app.http.voices.forms import Form, read_form
from serve_app.http.voices.routes import flac
from serve_app.http.voices.view import library_entry
from serve_app.voices.names import folded
from serve_app.voices.values import StoredVoice


def add_routes(app: FastAPI, desk: Desk) -> None:
    max_bytes = desk.config.max_upload_bytes

    def route(
        method: str, path: str, status: int = 200
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Under both of its prefixes; its documentation is chatterbox's."""

        def add(handler: Callable[..., Any]) -> Callable[..., Any]:
            for prefix in ("", "/v1"):
                app.add_api_route(
                    prefix + path,
                    handler,
                    methods=[method],
                    status_code=status,
                    response_class=Response,
                    include_in_schema=False,
                )
            return handler

        return add

    async def entry(voice: StoredVoice) -> dict[str, Any]:
        return library_entry(voice, (await desk.library.now()).aliases_for(desk.caller))

    async def form_of(request: Request) -> Form:
        """A form, or the query, in which some clients send what is short."""
        form = await read_form(request, max_bytes)
        return Form({**request.query_params, **form.fields}, form.files)

    @route("GET", "/voices")
    async def list_library() -> Response:
        snapshot = await desk.library.now()
        aliases = snapshot.aliases_for(desk.caller)
        voices = [library_entry(voice, aliases) for voice in snapshot.open_to(desk.caller)]
        return AsciiJSONResponse({"voices": voices, "count": len(voices)})

    @route("POST", "/voices", 201)
    async def upload_to_library(request: Request) -> Response:
        voice = await desk.create(await form_of(request))
        content = {"message": "Voice uploaded successfully", "voice": await entry(voice)}
        return AsciiJSONResponse(content, 201)

    @route("GET", "/voices/all-names")
    async def list_library_names() -> Response:
        snapshot = await desk.library.now()
        names = [voice.name for voice in snapshot.open_to(desk.caller)]
        names += [alias.name for alias in snapshot.aliases_for(desk.caller)]
        return AsciiJSONResponse({"voice_names": names, "count": len(names)})

    @route("GET", "/voices/default")
    async def show_library_default() -> Response:
        voice = (await desk.library.now()).find(None, desk.caller)
        if not isinstance(voice, StoredVoice):
            return AsciiJSONResponse({"default_voice": None, "source": "file_system"})
        content = {"default_voice": voice.name, "source": "voice_library"}
        return AsciiJSONResponse({**content, "voice_info": await entry(voice)})

    @route("POST", "/voices/default")
    async def set_library_default(request: Request) -> Response:
        name = _required((await form_of(request)).text("voice_name"), "voice_name")
        voice = await desk.set_default(name)
        assert voice is not None
        content = {"message": "Default voice updated successfully", "default_voice": voice.name}
        return AsciiJSONResponse({**content, "voice_info": await entry(voice)})

    @route("DELETE", "/voices/default")
    async def reset_library_default() -> Response:
        await desk.set_default(None)
        message = "Default voice reset to system default"
        content = {"message": message, "default_voice": None, "source": "file_system"}
        return AsciiJSONResponse(content)

    @route("POST", "/voices/cleanup")
    async def clean_library() -> Response:
        """There is nothing that could be missing: a voice is there as a whole or not at all."""
        return AsciiJSONResponse({"message": "Cleanup completed", "removed_voices": [], "count": 0})

    @route("GET", "/voices/{voice_name}")
    async def show_library_voice(voice_name: str) -> Response:
        voice = await desk.library.get(voice_name, desk.caller)
        return AsciiJSONResponse({"voice": await entry(voice)})

    @route("GET", "/voices/{voice_name}/download")
    async def download_from_library(voice_name: str) -> Response:
        return flac(*await desk.recording(voice_name))

    @route("PUT", "/voices/{voice_name}")
    async def rename_in_library(request: Request, voice_name: str) -> Response:
        form = await form_of(request)
        new_name = _required(form.text("new_name"), "new_name")
        voice = await desk.change(voice_name, Form({"new_name": new_name}))
        content = {"message": "Voice renamed successfully", "old_name": voice_name}
        return AsciiJSONResponse({**content, "new_name": voice.name})

    @route("DELETE", "/voices/{voice_name}")
    async def delete_from_library(voice_name: str) -> Response:
        voice = await desk.delete(voice_name)
        content = {"message": "Voice deleted successfully", "voice_name": voice.name}
        return AsciiJSONResponse(content)

    @route("GET", "/voices/{voice_name}/aliases")
    async def list_library_aliases(voice_name: str) -> Response:
        voice = await desk.library.get(voice_name, desk.caller)
        aliases = (await entry(voice))["aliases"]
        content = {"voice_name": voice.name, "aliases": aliases, "count": len(aliases)}
        return AsciiJSONResponse(content)

    @route("POST", "/voices/{voice_name}/aliases", 201)
    async def add_library_alias(request: Request, voice_name: str) -> Response:
        name = _required((await form_of(request)).text("alias"), "alias")
        voice = await desk.library.get(voice_name, desk.caller)
        alias = await desk.set_alias(name, voice.id)
        aliases = (await entry(voice))["aliases"]
        content = {"message": "Alias added successfully", "voice_name": voice.name}
        return AsciiJSONResponse({**content, "alias": alias.name, "aliases": aliases}, 201)

    @route("DELETE", "/voices/{voice_name}/aliases/{alias}")
    async def remove_library_alias(voice_name: str, alias: str) -> Response:
        voice = await desk.library.get(voice_name, desk.caller)
        if folded(alias) not in map(folded, (await entry(voice))["aliases"]):
            raise NotFound(f"'{voice.name}' has no alias '{alias[:80]}'.", "alias", "not_found")
        await desk.drop_alias(alias)
        aliases = (await entry(voice))["aliases"]
        content = {"message": "Alias removed successfully", "voice_name": voice.name}
        return AsciiJSONResponse({**content, "alias": alias, "aliases": aliases})


def _required(value: str | None, param: str) -> str:
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param)
    return value
