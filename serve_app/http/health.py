"""What a server says about itself: health, readiness, version."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from serve_app import __version__
from serve_app.http.catalog import Catalog
from serve_app.types import ModelCard

State = Literal["healthy", "initializing", "degraded", "unhealthy"]

_EMBEDDED_NOTE: Final = (
    "The embedded random checkpoint is served: it makes audio of the right length and format,"
    " but not words. Set TTS_MODEL to serve a released checkpoint."
)


@dataclass(frozen=True, slots=True)
class Status:
    """Whether requests can be served, and the facts that `/health` shows.

    `replicas` counts the running ("ready") and all ("total") replicas of each deployment. `info`
    comes from the application: "backend", "placement", "devices" and whatever else it tells.
    """

    state: State
    ready: bool
    reason: str | None = None
    replicas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def can_serve(self) -> bool:
        return self.state in ("healthy", "degraded")


def add_routes(app: FastAPI, catalog: Catalog, status: Callable[[], Awaitable[Status]]) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        now = await status()
        return JSONResponse(health_body(now, catalog.cards), 200 if now.can_serve else 503)

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
    async def root(request: Request) -> Response:
        """The playground for a browser; a few words for programs, which look here for a sign of
        life.
        """
        if "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("web/")
        return JSONResponse(
            {
                "name": "Qwen3-TTS",
                "version": __version__,
                "docs": "/docs",
                "playground": "/web/",
                "speech": "/v1/audio/speech",
            }
        )


def health_body(status: Status, cards: Sequence[ModelCard]) -> dict[str, Any]:
    """Status, models, replicas; the fields of `status.info` stand at the top level."""
    embedded = any(card.embedded for card in cards)
    body: dict[str, Any] = {
        "status": status.state,
        "version": __version__,
        "models": [card.name for card in cards],
        **status.info,
        "backend": {
            "name": status.info.get("backend", "vllm"),
            "model_id": cards[0].name if cards else None,
            "ready": status.ready,
        },
        "replicas": status.replicas,
        "embedded": embedded,
    }
    if embedded:
        body["note"] = _EMBEDDED_NOTE
    if status.reason is not None:
        body["reason"] = status.reason
    return body
