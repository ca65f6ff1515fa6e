"""What a server says about itself: health, readiness, version."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response

from serve_app import __version__
from serve_app.http.catalog import Catalog
from serve_app.types import ModelCard

# Of what a model tells of itself.
_OF_VERSION: Final = ("placement", "profile", "config_digest")

# Speech is made without it, and it starts when there is a recording.
STARTS_LATE: Final = "VoiceEncoder"

State = Literal["healthy", "initializing", "degraded", "unhealthy", "draining"]

_EMBEDDED_NOTE: Final = (
    "The embedded voice is served: a small English model of this project's own, made on synthetic"
    " speech. Set TTS_MODEL to serve a released checkpoint."
)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Of one model: as of `Status`, for what its own application has.

    `name` is the served one, or what it is called before it has said so.
    """

    name: str
    application: str
    state: State
    reason: str | None = None
    replicas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def can_serve(self) -> bool:
        return self.state in ("healthy", "degraded")


@dataclass(frozen=True, slots=True)
class Status:
    """Whether requests can be served, and the facts that `/health` shows.

    `replicas` counts the running ("ready") and all ("total") replicas of each deployment of the
    application that answers. `info` is the default model's: "backend", "placement", "devices" and
    whatever else it tells. `models` has all of them, the default first.
    """

    state: State
    reason: str | None = None
    replicas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)
    application: str = ""
    models: Sequence[ModelStatus] = ()

    @property
    def can_serve(self) -> bool:
        return self.state in ("healthy", "degraded")


def overall(
    application: str,
    replicas: Mapping[str, Mapping[str, int]],
    models: Sequence[ModelStatus],
    info: Mapping[str, Any],
) -> Status:
    """The state of a server from those of its models: it serves as long as one of them does.

    `application` is the one that answers, `replicas` are of its deployments, `info` is its own; of
    `models` the default comes first.
    """
    state: State
    if any(model.can_serve for model in models):
        missing = any(
            n["ready"] < n["total"] for name, n in replicas.items() if name != STARTS_LATE
        )
        whole = all(model.state == "healthy" for model in models)
        state = "healthy" if whole and not missing else "degraded"
    elif any(model.state == "initializing" for model in models) or not models:
        state = "initializing"
    else:
        state = "unhealthy"
    reasons = [(model.name, model.reason) for model in models if model.reason is not None]
    if not models:
        reason = "no application with a model is known yet"
    elif len(models) == 1:
        reason = models[0].reason
    else:
        reason = "; ".join(f"{name}: {why}" for name, why in reasons) or None
    return Status(
        state,
        reason,
        replicas,
        {**info, **models[0].info} if models else info,
        application,
        tuple(models),
    )


def add_routes(
    app: FastAPI,
    catalog: Catalog,
    status: Callable[[], Awaitable[Status]],
    *,
    has_pages: bool = True,
) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        now = await status()
        is_well = now.can_serve or now.state == "draining"
        return JSONResponse(health_body(now, catalog.cards), 200 if is_well else 503)

    @app.get("/ready")
    @app.get("/readyz", include_in_schema=False)
    async def ready(model: str | None = None) -> JSONResponse:
        """Whether requests can be served; with `model`, those for that one."""
        now = await status()
        if model is not None:
            card = catalog.get(model)
            one = next((known for known in now.models if known.name == card.name), None)
            if one is not None and not one.can_serve:
                return JSONResponse({"ready": False, "reason": one.reason}, 503)
        return JSONResponse(
            {"ready": now.can_serve, "reason": now.reason}, 200 if now.can_serve else 503
        )

    @app.get("/livez", include_in_schema=False)
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/version")
    async def version() -> dict[str, Any]:
        models = {
            model.name: {key: value for key, value in model.info.items() if key in _OF_VERSION}
            for model in (await status()).models
        }
        return {"version": __version__, "models": models}

    @app.get("/", include_in_schema=False)
    async def root(request: Request) -> Response:
        """The playground for a browser; a few words for programs, which look here for a sign of
        life.
        """
        if has_pages and "text/html" in request.headers.get("accept", ""):
            return RedirectResponse("web/")
        pages = {"docs": "/docs", "playground": "/web/"} if has_pages else {}
        return JSONResponse(
            {
                "name": "Qwen3-TTS",
                "version": __version__,
                **pages,
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
            "ready": status.can_serve,
        },
        "replicas": status.replicas,
        "embedded": embedded,
        "served": [_model_body(model) for model in status.models],
    }
    if embedded:
        body["note"] = _EMBEDDED_NOTE
    if status.reason is not None:
        body["reason"] = status.reason
    return body


def _model_body(model: ModelStatus) -> dict[str, Any]:
    body = {
        "model": model.name,
        "application": model.application,
        "status": model.state,
        **model.info,
        "replicas": model.replicas,
    }
    return body if model.reason is None else {**body, "reason": model.reason}
