"""The HTTP application: `build_api` around any `speak`, without Ray.

There is no middleware here: Starlette's `BaseHTTPMiddleware` would end a body that broke off as if
it were complete.
"""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from serve_app import __version__, metrics
from serve_app.config import IngressConfig
from serve_app.errors import UnknownModel
from serve_app.http.catalog import model_object, voices_body
from serve_app.http.errors import add_error_handlers
from serve_app.http.health import Status, health_body
from serve_app.http.names import find_card
from serve_app.http.speech.body import SpeechBody
from serve_app.http.speech.endpoint import SpeechEndpoint
from serve_app.resumption import Speak
from serve_app.types import ModelCard


def build_api(
    speak: Speak,
    cards: Sequence[ModelCard],
    config: IngressConfig,
    status: Callable[[], Awaitable[Status]],
    recorder: metrics.Recorder | None = None,
) -> FastAPI:
    """The application: `speak` makes the audio, `cards` say what is served, the default first."""
    app = FastAPI(title="Qwen3-TTS", version=__version__)
    _add_speech(app, SpeechEndpoint(speak, cards, config, recorder or metrics.NoRecorder()))
    _add_lists(app, cards)
    _add_health(app, cards, status)
    add_error_handlers(app)
    return app


def _add_speech(app: FastAPI, speech: SpeechEndpoint) -> None:
    schema = SpeechBody.model_json_schema()
    body = {"content": {"application/json": {"schema": schema}}, "required": True}

    @app.post("/v1/audio/speech", openapi_extra={"requestBody": body})
    @app.post("/audio/speech", include_in_schema=False)
    async def create_speech(request: Request) -> Response:
        return await speech.respond(request)


def _add_lists(app: FastAPI, cards: Sequence[ModelCard]) -> None:
    created = int(time.time())

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model_object(card, created) for card in cards]}

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        card = find_card(model_id, cards)
        if card is None:
            message = f"The model '{model_id}' does not exist."
            raise UnknownModel(message, "model", "model_not_found")
        return model_object(card, created)

    @app.get("/v1/audio/models")
    async def list_audio_models() -> dict[str, Any]:
        return {"models": [{"id": card.name, "name": card.name} for card in cards]}

    @app.get("/v1/audio/voices")
    async def list_voices(legacy: bool = False) -> Mapping[str, Any]:
        return voices_body(cards, created, legacy)


def _add_health(
    app: FastAPI, cards: Sequence[ModelCard], status: Callable[[], Awaitable[Status]]
) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        now = await status()
        return JSONResponse(health_body(now, cards), 200 if now.can_serve else 503)

    @app.get("/ready")
    @app.get("/readyz", include_in_schema=False)
    async def ready() -> JSONResponse:
        now = await status()
        return JSONResponse({"ready": now.ready, "reason": now.reason}, 200 if now.ready else 503)

    @app.get("/livez", include_in_schema=False)
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, str]:
        return {
            "name": "Qwen3-TTS",
            "version": __version__,
            "docs": "/docs",
            "speech": "/v1/audio/speech",
        }
