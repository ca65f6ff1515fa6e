"""What a server says about itself: the value, and the body of `GET /health`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from serve_app import __version__
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
            "model_id": cards[0].name,
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
