"""What a simulation came to, as text and as a plot."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from load_tests.reports import plots
from load_tests.reports.report import table_head, table_line
from load_tests.simulator.run import Outcome
from serve_app.scaling.tuning import Tuning


@dataclass(frozen=True, slots=True)
class Row:
    """One run beside the oracle."""

    outcome: Outcome
    tuning: Tuning
    oracle_hours: float

    @property
    def cost(self) -> float:
        """GPU hours over the oracle's."""
        return self.outcome.gpu_hours / self.oracle_hours


def table(rows: Sequence[Row]) -> str:
    head = (
        *("load", "spare", "requests", "refused", "first audio p50 / p95 / p99 ms"),
        *("most GPUs", "GPU hours", "of the oracle's", "changes"),
    )
    return "\n".join([*table_head(head), *(_line(row) for row in rows)]) + "\n"


def _line(row: Row) -> str:
    outcome = row.outcome
    first = " / ".join(_ms(outcome.first_audio_s(q)) for q in (0.5, 0.95, 0.99))
    return table_line(
        [
            outcome.load,
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


def plot(path: Path, row: Row) -> bool:
    """Arrivals, streams, replicas and first audio over time; False without matplotlib."""
    outcome = row.outcome
    seconds = outcome.seconds
    firsts = [
        1000 * max((first_s for first_s, _ in second.first_audio_s), default=0.0)
        for second in seconds
    ]
    series = {
        "requests/s": [second.arrived for second in seconds],
        "streams and waiting": [second.streams + second.waiting for second in seconds],
        "replicas asked for": outcome.wanted,
        "latest first audio, ms": firsts,
    }
    return plots.timeline(path, series, f"{outcome.load}, spare {row.tuning.spare}")
