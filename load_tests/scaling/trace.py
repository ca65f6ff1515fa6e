"""What one run of the autoscaler came to: replicas, streams, first audio and decisions over time.

Everything here is computed from what a run left; times are seconds from its beginning.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from load_tests.chaos.outcomes import Outcome
from load_tests.loops.metrics import percentile
from load_tests.servers.steering import Reading

_LINE: Final = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}).*? scaling (\{.*\})\s*$")
# First audio is told for spans of so many seconds.
SPAN_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Step:
    """A series that keeps its value until the next time."""

    at_s: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def most(self) -> float:
        return max(self.values, default=0.0)

    def first(self, value: float, since_s: float = 0.0) -> float | None:
        """When it was `value` or more for the first time from `since_s` on."""
        if _at(self, since_s) >= value:
            return since_s
        pairs = zip(self.at_s, self.values, strict=True)
        return next((at_s for at_s, v in pairs if at_s >= since_s and v >= value), None)

    def settled(self, value: float) -> float | None:
        """Since when it has been `value` and stayed so to the end."""
        found = None
        for at_s, now in zip(self.at_s, self.values, strict=True):
            found = (at_s if found is None else found) if now == value else None
        return found


def replica_steps(
    readings: Sequence[Reading], began_s: float
) -> tuple[dict[str, Step], dict[str, Step]]:
    """Replicas that run, and those that run, start or stop, of each deployment."""

    def steps(of: str) -> dict[str, Step]:
        names = {name for reading in readings for name in getattr(reading, of)}
        return {
            name: _changes(
                (reading.at_s - began_s, float(getattr(reading, of).get(name, 0)))
                for reading in readings
            )
            for name in sorted(names)
        }

    return steps("running"), steps("target")


def stream_steps(outcomes: Iterable[Outcome], began_s: float) -> tuple[Step, Step]:
    """Streams that are open, and those of them that still wait for their first audio."""
    opened: list[tuple[float, int]] = []
    waiting: list[tuple[float, int]] = []
    for outcome in outcomes:
        result = outcome.result
        sent_s = result.sent_at_s - began_s
        first_s = result.end_s if result.first_byte_s is None else result.first_byte_s
        opened += [(sent_s, 1), (sent_s + result.end_s, -1)]
        waiting += [(sent_s, 1), (sent_s + first_s, -1)]
    return _summed(opened), _summed(waiting)


def first_audio_steps(outcomes: Iterable[Outcome], began_s: float) -> Step:
    """p95 of the first audio of requests sent in each span, in seconds."""
    spans: dict[int, list[float]] = {}
    for outcome in outcomes:
        first_s = outcome.result.first_playable_s
        if first_s is not None:
            spans.setdefault(int((outcome.result.sent_at_s - began_s) // SPAN_S), []).append(
                first_s
            )
    order = sorted(spans)
    return Step(
        tuple(number * SPAN_S for number in order),
        tuple(percentile(sorted(spans[number]), 0.95) for number in order),
    )


def decisions(log: str, began_utc_s: float) -> list[dict[str, Any]]:
    """The lines of the policy in the controller's log, each with `at_s` besides what it says."""
    found = []
    for line in log.splitlines():
        match = _LINE.search(line)
        if match:
            seconds = time.mktime(time.strptime(match[1], "%Y-%m-%d %H:%M:%S"))
            at_s = seconds + int(match[2]) / 1000 - began_utc_s
            found.append({"at_s": round(at_s, 2), **json.loads(match[3])})
    return found


def apart_s(
    targets: Mapping[str, Step],
    stages: Sequence[str],
    end_s: float,
    but: Sequence[tuple[float, float]] = (),
) -> float:
    """For how long the stages had unequal numbers of replicas, all that exist counted.

    `but` are spans in which they are not looked at.
    """
    moments = {at_s for name in stages for at_s in targets[name].at_s}
    times = sorted(moments | {end_s, *(at_s for span in but for at_s in span)})
    total = 0.0
    for begin_s, next_s in pairwise(times):
        if any(first_s <= begin_s < last_s for first_s, last_s in but):
            continue
        values = {_at(targets[name], begin_s) for name in stages}
        total += (next_s - begin_s) * (len(values) > 1)
    return total


def _at(step: Step, at_s: float) -> float:
    value = math.nan
    for time_s, now in zip(step.at_s, step.values, strict=True):
        if time_s > at_s:
            break
        value = now
    return value


def _changes(pairs: Iterable[tuple[float, float]]) -> Step:
    kept: list[tuple[float, float]] = []
    last: tuple[float, float] | None = None
    for pair in pairs:
        if not kept or pair[1] != kept[-1][1]:
            kept.append(pair)
        last = pair
    if last is not None and kept[-1] != last:
        kept.append(last)
    return Step(tuple(at_s for at_s, _ in kept), tuple(value for _, value in kept))


def _summed(changes: list[tuple[float, int]]) -> Step:
    total = 0
    points: dict[float, float] = {}
    for at_s, change in sorted(changes):
        total += change
        points[at_s] = float(total)
    return Step(tuple(points), tuple(points.values()))
