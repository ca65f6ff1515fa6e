"""What measuring a server gave, over as many runs as it took."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from load_tests.loops.level import Level
from load_tests.loops.runner import BurstLoop, ClosedLoop, OpenLoop, Plan
from load_tests.servers.child import say
from load_tests.servers.late_kernels import late_text

CACHES: Final = {True: ", caches empty", False: ", caches filled", None: ""}


@dataclass(slots=True)
class Start:
    """One start of a server; memory in MiB per GPU, peak of the load that followed.

    caches_empty: whether nothing was compiled beforehand (`--caches`); None where nobody looked.
    replicas: what each says of its part of it.
    late_kernels: those that were compiled after ready, until the end of the load; None where no
        stage looks, or nobody has looked yet.
    """

    time_utc: str
    caches_empty: bool | None = None
    ready_s: float | None = None
    memory_before_mib: list[int] = field(default_factory=list)
    memory_idle_mib: list[int] = field(default_factory=list)
    memory_peak_mib: list[int] = field(default_factory=list)
    replicas: list[str] = field(default_factory=list)
    late_kernels: list[str] | None = None

    def text(self) -> str:
        ready = "never ready" if self.ready_s is None else f"ready after {self.ready_s:.1f} s"
        caches = CACHES[self.caches_empty]
        memory = ", ".join(
            f"{name} {'/'.join(map(str, values))} MiB"
            for name, values in (
                ("before", self.memory_before_mib),
                ("idle", self.memory_idle_mib),
                ("peak", self.memory_peak_mib),
            )
            if values
        )
        memory = f"; GPU memory {memory}" if memory else ""
        late = "" if self.late_kernels is None else f"; {late_text(self.late_kernels)}"
        replicas = "".join(f"\n  - {each}" for each in self.replicas)
        return f"{ready}{caches}{memory}{late}{replicas}"


@dataclass(slots=True)
class Measured:
    """What one placement gave, in all runs that were resumed.

    variant: settings that differ from those of the measurement beside it, as on the command line.
    earlier: levels of runs before this one, as JSON.
    complete: every level asked for was run, or is beyond what the server can do.
    """

    placement: str
    config: dict[str, Any]
    variant: str = ""
    health: Mapping[str, Any] | None = None
    starts: list[Start] = field(default_factory=list)
    earlier: list[dict[str, Any]] = field(default_factory=list)
    levels: list[Level] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    complete: bool = False

    @property
    def name(self) -> str:
        return f"{self.placement}, {self.variant}" if self.variant else self.placement

    def as_json(self, *, requests: bool) -> dict[str, Any]:
        levels = [level.as_json(requests=requests) for level in self.levels]
        return {
            "placement": self.placement,
            "variant": self.variant,
            "config": self.config,
            "health": self.health,
            "starts": [asdict(start) for start in self.starts],
            "levels": [*self.earlier, *levels],
            "notes": self.notes,
            "complete": self.complete,
        }

    def resume(self, before: Mapping[str, Any]) -> None:
        """Take over starts and whole levels from the JSON of an earlier run."""
        if before["config"] != self.config:
            self.note("the earlier run had other settings: not resumed")
            return
        self.starts = [Start(**start) for start in before["starts"]]
        self.earlier = [level for level in before["levels"] if not level["stopped"]]

    def done(self) -> dict[Plan, float]:
        """What `climb` need not repeat."""
        return {_plan(level): _p95_s(level) for level in self.earlier}

    def note(self, text: str) -> None:
        self.notes.append(f"{self.name}: {text}")
        say(self.notes[-1])


def _plan(level: Mapping[str, Any]) -> Plan:
    if level["loop"] == "closed":
        return ClosedLoop(**{**level["plan"], "max_s": None})
    if level["loop"] in ("burst", "cold"):
        return BurstLoop(**level["plan"])
    return OpenLoop(**level["plan"])


def _p95_s(level: Mapping[str, Any]) -> float:
    value = level["first_playable_s"]["p95"]
    return math.inf if value is None else value


# Facts of which a difference makes it another measurement.
_SAME: Final = ("workload", "commit", "versions", "gpus")


def resume(
    all_measured: Sequence[Measured], before: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    """Give each server what an earlier run of the same workload on the same things has of it."""
    changed = [name for name in _SAME if before["facts"].get(name) != facts.get(name)]
    if changed:
        say(f"not resumed, changed since the earlier run: {', '.join(changed)}")
        return
    servers = {(each["placement"], each.get("variant", "")): each for each in before["servers"]}
    for measured in all_measured:
        server = servers.get((measured.placement, measured.variant))
        if server is not None:
            measured.resume(server)
