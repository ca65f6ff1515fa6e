"""Levels as they stand in JSON, the runs of one load with several seeds taken together."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

# A failed request counts as infinitely late; JSON has no infinity.
_Figure = float | None


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and range over the runs of one load."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[_Figure]) -> "Spread":
        known = [math.inf if value is None else value for value in values]
        return cls(median(known), min(known), max(known))

    def text(self, digits: int = 1) -> str:
        """`median`, and behind it the range of several runs."""
        if self.low == self.high:
            return number(self.median, digits)
        span = f"{number(self.low, digits)} to {number(self.high, digits)}"
        return f"{number(self.median, digits)} ({span})"


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """One load, by all its runs; delays in ms.

    load: streams of a closed loop, requests per second of an open one, requests at once of a burst.
    bursts_p95_ms: of each burst by itself, over the runs.
    """

    loop: Literal["closed", "open", "burst", "cold"]
    load: float
    label: str
    seeds: tuple[int, ...]
    requests: int
    failures: int
    underruns: int
    underruns_over_50_ms: int
    p50_ms: Spread
    p95_ms: Spread
    audio_s_per_s: Spread
    lag_p99_ms: Spread
    bursts_p95_ms: tuple[float, ...] = ()


def load_points(levels: Sequence[Mapping[str, Any]]) -> list[LoadPoint]:
    """Group levels (`Level.as_json`) by their load, in the order in which loads first appear."""
    groups: defaultdict[tuple[str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for level in levels:
        plan = level["plan"]
        load = next(plan[name] for name in ("streams", "rate_hz", "size") if name in plan)
        groups[level["loop"], load].append(level)
    return [_point(loop, load, runs) for (loop, load), runs in groups.items()]


def _point(loop: Any, load: float, runs: Sequence[Mapping[str, Any]]) -> LoadPoint:
    def delay(name: str, quantile: str) -> Spread:
        values = [run[name][quantile] for run in runs]
        return Spread.of([None if value is None else 1000 * value for value in values])

    return LoadPoint(
        loop=loop,
        load=load,
        label=f"{loop}, {runs[0]['label']}",
        seeds=tuple(run["plan"]["seed"] for run in runs if "seed" in run["plan"]),
        requests=sum(run["requests"] for run in runs),
        failures=sum(run["failures"] for run in runs),
        underruns=sum(run["underruns"] for run in runs),
        underruns_over_50_ms=sum(run["underruns_over_50_ms"] for run in runs),
        p50_ms=delay("first_playable_s", "p50"),
        p95_ms=delay("first_playable_s", "p95"),
        audio_s_per_s=Spread.of(
            [run["audio_s_per_s_window"] or run["audio_s_per_s"] for run in runs]
        ),
        # A closed loop is never late for its own sake: its client's clock tells instead.
        lag_p99_ms=delay("clock_error_s" if loop == "closed" else "lag_s", "p99"),
        bursts_p95_ms=tuple(
            math.inf if value is None else 1000 * value
            for run in runs
            for value in run.get("bursts_p95_s", ())
        ),
    )


def number(value: float, digits: int) -> str:
    return "failed" if math.isinf(value) else f"{value:,.{digits}f}"
