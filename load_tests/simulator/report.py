"""What a simulation came to, as text and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from load_tests.reports import plots
from load_tests.reports.report import table_head, table_line
from load_tests.simulator.run import Outcome
from serve_app.scaling.tuning import Tuning


@dataclass(frozen=True, slots=True)
class Row:
    """One run beside the oracle's replicas, int64 [seconds]."""

    outcome: Outcome
    tuning: Tuning
    oracle: np.ndarray
    seed: int = 0

    @property
    def oracle_hours(self) -> float:
        return float(self.oracle.sum()) / 3600

    @property
    def cost(self) -> float:
        """GPU hours over the oracle's."""
        return self.outcome.gpu_hours / self.oracle_hours


def table(rows: Sequence[Row]) -> str:
    head = (
        *("load", "seed", "spare", "requests", "refused", "first audio p50 / p95 / p99 ms"),
        *("most GPUs", "GPU hours", "of the oracle's", "changes"),
    )
    return "\n".join([*table_head(head), *(_line(row) for row in rows)]) + "\n"


def _line(row: Row) -> str:
    outcome = row.outcome
    first = " / ".join(_ms(outcome.first_audio_s(q)) for q in (0.5, 0.95, 0.99))
    return table_line(
        [
            outcome.load,
            str(row.seed),
            str(row.tuning.spare),
            str(outcome.requests),
            str(outcome.refused),
            first,
            str(max(outcome.wanted)),
            f"{outcome.gpu_hours:.1f}",
            f"{row.cost:.3f}",
            str(outcome.changes),
        ]
    )


def _ms(seconds: float) -> str:
    return "refused" if seconds == float("inf") else f"{1000 * seconds:.1f}"


def over_seeds(rows: Sequence[Row]) -> str:
    """Cost and first audio of each load: the mean and the worst of its seeds."""
    head = (
        "load",
        "seeds",
        "cost, mean",
        "cost, most",
        "first audio p95, most ms",
        "refused, most %",
    )
    lines = [*table_head(head)]
    for load in dict.fromkeys(row.outcome.load for row in rows):
        found = [row for row in rows if row.outcome.load == load]
        costs = [row.cost for row in found]
        refused = max(row.outcome.refused / max(1, row.outcome.requests) for row in found)
        lines.append(
            table_line(
                [
                    load,
                    str(len(found)),
                    f"{sum(costs) / len(costs):.3f}",
                    f"{max(costs):.3f}",
                    _ms(max(row.outcome.first_audio_s(0.95) for row in found)),
                    f"{100 * refused:.2f}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def plot(path: Path, row: Row) -> bool:
    """Arrivals, streams, replicas, first audio and cost over time; False without matplotlib."""
    outcome = row.outcome
    seconds = outcome.seconds
    times = [float(second) for second in range(len(seconds))]
    firsts = [
        1000 * max((first_s for first_s, _ in second.first_audio_s), default=0.0)
        for second in seconds
    ]
    spent = np.cumsum([second.gpu_s for second in seconds]) / 3600
    panels = {
        "requests/s": {"sent": (times, [float(second.arrived) for second in seconds])},
        "streams": {
            "running": (times, [second.streams for second in seconds]),
            "waiting": (times, [second.waiting for second in seconds]),
        },
        "replicas": {
            "asked for": (times, [float(count) for count in outcome.wanted]),
            "ready": (times, [float(second.replicas) for second in seconds]),
            "oracle": (times, row.oracle.tolist()),
        },
        "latest first audio, ms": {"of each second": (times, firsts)},
        "GPU hours": {
            "spent": (times, spent.tolist()),
            "oracle": (times, (np.cumsum(row.oracle) / 3600).tolist()),
        },
    }
    return plots.steps(path, panels)
