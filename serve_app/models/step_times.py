"""How long the steps of a stage take, counted where they are made."""

from bisect import bisect_left
from collections.abc import Mapping
from math import inf
from typing import Final

from serve_app import metrics

_BOUNDS: Final = (*metrics.STAGE_STEP.buckets, inf)


class StepTimes:
    """Counts of steps in the buckets of `metrics.STAGE_STEP`, with the time of those in each.

    Written by the thread that makes the steps, in half a microsecond for each; read by any.
    """

    def __init__(self) -> None:
        self._buckets = [(0, 0.0)] * len(_BOUNDS)

    def note(self, seconds: float) -> None:
        """A step is over."""
        place = bisect_left(_BOUNDS, seconds)
        number, total_s = self._buckets[place]
        self._buckets[place] = (number + 1, total_s + seconds)

    @property
    def total_s(self) -> float:
        return sum(total_s for _, total_s in self._buckets)

    def stats(self) -> Mapping[str, float]:
        """Counters by the names of `metrics.step_counters`, of buckets that are not empty."""
        return {
            name: value
            for bound, (number, total_s) in zip(_BOUNDS, self._buckets, strict=True)
            if number
            for name, value in zip(metrics.step_counters(bound), (number, total_s), strict=True)
        }
