"""What a replica that yields audio reports of its streams: arrivals, first audio, slack."""

import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sized
from contextlib import aclosing
from typing import Final, Protocol, TypeVar

from serve_app.scaling import snapshot as names

_WEIGHT: Final = 1 / 16
_FRAME_S: Final = 0.08
# The first chunks are short, and nobody can be ahead of its listener by more than it has sent.
_RAMP_S: Final = 0.9


class Chunk(Protocol):
    """An item of a stream; `codes` are int64 [T, Q], one row for each codec frame."""

    @property
    def codes(self) -> Sized: ...


T = TypeVar("T", bound=Chunk)


class Board:
    """Counts the streams of the last ten seconds, whether anybody asks or not; belongs to one event
    loop.

    Args:
        capacity: streams that the replica carries together.
    """

    def __init__(self, capacity: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._clock = clock
        self._begun: deque[float] = deque()
        self._firsts: deque[tuple[float, float]] = deque()
        self._slacks: deque[tuple[float, float]] = deque()
        self._service_s: float | None = None

    async def noted(
        self, items: AsyncGenerator[T, None], *, resumed: bool
    ) -> AsyncGenerator[T, None]:
        """Pass on a stream; one that is resumed is no arrival, and has no first audio."""
        begun_s = self._clock()
        self._forget(begun_s)
        if not resumed:
            self._begun.append(begun_s)
        first_s: float | None = None
        ahead_s = 0.0
        async with aclosing(items):
            async for item in items:
                now_s = self._clock()
                self._forget(now_s)
                if first_s is None:
                    first_s = now_s
                    if not resumed:
                        self._firsts.append((now_s, now_s - begun_s))
                elif ahead_s >= _RAMP_S:
                    # What its listener had left to hear when this came.
                    self._slacks.append((now_s, first_s + ahead_s - now_s))
                ahead_s += len(item.codes) * _FRAME_S
                yield item
        kept_s = self._clock() - begun_s
        before_s = kept_s if self._service_s is None else self._service_s
        self._service_s = before_s + _WEIGHT * (kept_s - before_s)

    def report(self) -> dict[str, float]:
        """By the names of `scaling.snapshot`; without what nothing is known of."""
        self._forget(self._clock())
        found = {
            names.CAPACITY: float(self._capacity),
            names.ARRIVALS: len(self._begun) / names.WINDOW_S,
        }
        if self._service_s is not None:
            found[names.SERVICE] = self._service_s
        if self._firsts:
            found[names.FIRST_AUDIO] = _rank([value for _, value in self._firsts], 0.95)
        if self._slacks:
            found[names.SLACK] = _rank([value for _, value in self._slacks], 0.05)
        return found

    def _forget(self, now_s: float) -> None:
        """Serve asks for no report where the number of replicas is fixed."""
        while self._begun and now_s - self._begun[0] > names.WINDOW_S:
            self._begun.popleft()
        for timed in (self._firsts, self._slacks):
            while timed and now_s - timed[0][0] > names.WINDOW_S:
                timed.popleft()


def _rank(values: list[float], quantile: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(quantile * len(ordered)) - 1)]
