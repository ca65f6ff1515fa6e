"""What a scaling decision goes by: one look at all stages, as plain values.

Times are seconds of one clock that only advances; the policy never reads a clock itself.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

# Of what a replica reports (`record_autoscaling_stats`), by name.
RUNNING, WAITING, CAPACITY = "running", "waiting", "capacity"
ARRIVALS, SERVICE = "arrivals_per_s", "service_s"
FIRST_AUDIO, SLACK, KV = "first_audio_p95_s", "slack_p05_s", "kv_cache_usage"
# Of an ingress: of its own application; of others' models, before the name of their application.
REFUSED = "refused_per_s"
REFUSED_OF = f"{REFUSED}/"
# Over how many seconds a replica counts its arrivals, and keeps what it has seen.
WINDOW_S = 10.0
# Over how many seconds an ingress counts its refusals: a crowd before closed doors is to be seen at
# once, and what is refused by chance asks for no more than there is.
REFUSED_S = 3.0


@dataclass(frozen=True, slots=True)
class StageLoad:
    """One deployment.

    Attributes:
        ready: replicas that run.
        target: replicas asked for so far.
        least, most: bounds of what may be asked for, as configured.
        requests: running and queued, as Serve counts them.
        reports: what each replica that reports at all says of itself.
    """

    ready: int
    target: int
    least: int = 0
    most: int = 1
    requests: float = 0.0
    reports: tuple[Mapping[str, float], ...] = ()

    def total(self, name: str) -> float:
        return sum(report.get(name, 0.0) for report in self.reports)

    def worst(self, name: str, *, low: bool = False) -> float | None:
        """The largest of a value, or the smallest; None where nobody says it."""
        values = [report[name] for report in self.reports if name in report]
        if not values:
            return None
        return min(values) if low else max(values)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All stages at one moment, by the names of their deployments.

    holds: replicas that the nodes there are have room for, those that run included; without
        deployments of which nobody knows, or for which the cluster grows.
    refused: requests per second for these stages that ingresses of other applications refuse.
    """

    at_s: float
    stages: Mapping[str, StageLoad] = field(default_factory=dict)
    holds: Mapping[str, int] = field(default_factory=dict)
    refused: float = 0.0

    def line(self) -> str:
        """One line of JSON, as it is logged and replayed."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of_line(cls, line: str) -> "Snapshot":
        data = json.loads(line)
        stages = {
            name: StageLoad(**{**stage, "reports": tuple(stage["reports"])})
            for name, stage in data["stages"].items()
        }
        return cls(data["at_s"], stages, data.get("holds", {}), data.get("refused", 0.0))
