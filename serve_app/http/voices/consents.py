"""`/v1/audio/voice_consents`: recordings in which somebody agrees that their voice is used."""

from typing import Annotated, Any, Final

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response

from serve_app.errors import NotFound
from serve_app.http.document import JSON, responds
from serve_app.http.errors import AsciiJSONResponse
from serve_app.http.voices.desk import Desk
from serve_app.http.voices.document import CONSENT, FLAC
from serve_app.http.voices.forms import read_form
from serve_app.http.voices.view import consent_object
from serve_app.voices.names import checked_name

_PATH: Final = "/v1/audio/voice_consents"
_TAGS: Final[list[Any]] = ["voices"]


def add_routes(app: FastAPI, desk: Desk) -> None:
    max_bytes = desk.config.max_upload_bytes

    @app.post(_PATH, tags=_TAGS, response_class=Response, openapi_extra=CONSENT)
    async def create_voice_consent(request: Request) -> Response:
        """Keep a recording of somebody's consent."""
        consent = await desk.add_consent(await read_form(request, max_bytes))
        return AsciiJSONResponse(consent_object(consent))

    @app.get(_PATH, tags=_TAGS, response_class=Response, openapi_extra=responds(JSON))
    async def list_voice_consents(
        limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> Response:
        """The newest first."""
        found = [
            consent
            for consent in (await desk.library.now()).consents.values()
            if consent.is_open_to(desk.caller)
        ]
        found.sort(key=lambda consent: (consent.created_at, consent.id), reverse=True)
        if after is not None:
            ids = [consent.id for consent in found]
            if after not in ids:
                raise NotFound(f"There is no consent '{after[:80]}'.", "after", "not_found")
            found = found[ids.index(after) + 1 :]
        data = [consent_object(consent) for consent in found[:limit]]
        return AsciiJSONResponse(
            {
                "object": "list",
                "data": data,
                "first_id": data[0]["id"] if data else None,
                "last_id": data[-1]["id"] if data else None,
                "has_more": len(found) > limit,
            }
        )

    @app.get(
        _PATH + "/{consent_id}", tags=_TAGS, response_class=Response, openapi_extra=responds(JSON)
    )
    async def retrieve_voice_consent(consent_id: str) -> Response:
        return AsciiJSONResponse(
            consent_object(await desk.library.consent(consent_id, desk.caller))
        )

    @app.post(
        _PATH + "/{consent_id}", tags=_TAGS, response_class=Response, openapi_extra=responds(JSON)
    )
    async def update_voice_consent(request: Request, consent_id: str) -> Response:
        desk.require_uploads()
        name = checked_name((await read_form(request, max_bytes)).text("name"))
        consent = await desk.library.rename_consent(consent_id, name, desk.caller)
        return AsciiJSONResponse(consent_object(consent))

    @app.delete(
        _PATH + "/{consent_id}", tags=_TAGS, response_class=Response, openapi_extra=responds(JSON)
    )
    async def delete_voice_consent(consent_id: str) -> Response:
        """Withdraw it: where consent is required, its voices are not spoken with any more."""
        desk.require_uploads()
        await desk.library.delete_consent(consent_id, desk.caller)
        content = {"id": consent_id, "object": "audio.voice_consent", "deleted": True}
        return AsciiJSONResponse(content)

    @app.get(
        _PATH + "/{consent_id}/recording",
        tags=_TAGS,
        response_class=Response,
        openapi_extra=responds(FLAC),
    )
    async def download_consent_recording(consent_id: str) -> Response:
        consent = await desk.library.consent(consent_id, desk.caller)
        data = await desk.library.consent_recording(consent)
        if data is None:
            raise NotFound("The recording is gone.", "consent_id", "not_found")
        headers = {
            "Cache-Control": "private, no-store",
            "Content-Disposition": f'attachment; filename="{consent.id}.flac"',
        }
        return Response(data, headers=headers, media_type="audio/flac")
