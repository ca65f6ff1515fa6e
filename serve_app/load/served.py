"""What a model says of itself to an ingress: the card, the limits, and facts for operators."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve_app.load.gate import StageLimits
from serve_app.types import ModelCard


@dataclass(frozen=True, slots=True)
class About:
    """What the builder knows of a model: `limits` of its stages, and `info` for `/health`."""

    limits: StageLimits
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Served:
    """The answer of the stage that an ingress calls, once it has loaded the checkpoint."""

    card: ModelCard
    about: About
