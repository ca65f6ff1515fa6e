"""An application, as whoever runs the applications tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# failed: its operator has to do something; what it served before may still run.
ApplicationState = Literal["starting", "running", "failed", "stopping"]


@dataclass(frozen=True, slots=True)
class Application:
    """One application, of this package or of another.

    Attributes:
        name: of the application.
        entry: the deployment that an ingress calls; empty where it serves no model.
        version: another one means that all replicas are replaced, maybe by another checkpoint.
        label: what to call its model before it has said its name.
        known_as: names that clients may have for it, in lower case.
        reason: why it is as it is, where there is anything to say; of one that starts, what a
            replica has failed by.
        replicas: running ("ready") and all ("total") replicas by deployment; empty before it is
            built.
        waking: deployments whose first replica starts because somebody asks: they may be without
            any, and who asks waits.
        is_named: whether the model's own name is in `known_as`. That of a folder, or of the
            embedded voice, may be another one, which is known when the model is there.
        leaving: replicas that are taken out of service, by id, and for how many seconds each may
            finish what it has.
        lacks: what replicas wait for that have no node, where without them it is not whole.
    """

    name: str
    entry: str
    state: ApplicationState
    version: str = ""
    label: str = ""
    known_as: frozenset[str] = frozenset()
    reason: str | None = None
    replicas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    is_named: bool = True
    waking: frozenset[str] = frozenset()
    leaving: Mapping[str, float] = field(default_factory=dict)
    lacks: str | None = None

    def is_same_model(self, other: "Application") -> bool:
        """Whether both serve one checkpoint under one name, in whatever way."""
        return (self.entry, self.label, self.known_as) == (
            *(other.entry, other.label, other.known_as),
        )
