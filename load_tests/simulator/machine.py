"""Replicas and the streams on them, a second at a time.

All ready replicas share the streams evenly, as the router sees to. Streams are counted by the
frames that they still need, so a step costs the same for ten streams and for a million. Who may
wait is decided by the talker's own `Admission`.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from load_tests.simulator.measured import Service
from serve_app.errors import Overloaded
from serve_app.load.admission import Admission

# Streams by frames that are left, in bins so wide.
BIN_FRAMES: Final = 16
NUM_BINS: Final = 8192 // BIN_FRAMES + 2
# Within a second requests come, and places come free and are taken, many times over.
_PARTS: Final = 5


@dataclass(slots=True)
class Second:
    """What one second came to, streams in the mean; who is refused has no first audio."""

    arrived: int = 0
    refused: int = 0
    first_audio_s: list[tuple[float, int]] = field(default_factory=list)
    streams: float = 0.0
    waiting: float = 0.0
    replicas: int = 0
    gpu_s: float = 0.0
    moved: float = 0.0


_PLACES: Final = np.arange(NUM_BINS)


class Fleet:
    """The replicas of one application on GPUs.

    Args:
        ready: replicas that run from the beginning.
    """

    def __init__(self, service: Service, ready: int) -> None:
        self.service = service
        self.ready = ready
        self.starting: list[float] = []
        self._left = np.zeros(NUM_BINS)
        # (replicas, their streams by frames that are left)
        self._draining: list[tuple[int, np.ndarray]] = []
        self._queue: deque[tuple[float, np.ndarray]] = deque()
        self._frames = 60.0
        self._step_s = service.step_s(1.0)

    @property
    def streams(self) -> float:
        return float(self._left.sum())

    @property
    def waiting(self) -> float:
        return float(sum(counts.sum() for _, counts in self._queue))

    @property
    def kept_s(self) -> float:
        """How long a stream keeps its place, of late."""
        return self._frames * self._step_s

    @property
    def target(self) -> int:
        return self.ready + len(self.starting)

    def scale(self, target: int, now_s: float) -> None:
        """Start or remove replicas: first what only starts; what runs finishes its streams."""
        more = target - self.target
        if more > 0:
            at_s = now_s + self.service.start_s + self.service.node_s
            self.starting += [at_s] * more
            return
        for _ in range(-more):
            if self.starting:
                self.starting.pop()
        leaving = self.target - target
        if leaving > 0 and self.ready:
            share = min(1.0, leaving / self.ready)
            self._draining.append((leaving, self._left * share))
            self._left *= 1 - share
            self.ready -= leaving

    def lose(self, count: int) -> float:
        """Replicas die; their streams are resumed by the others, before who waits. How many."""
        count = min(count, self.ready)
        if not count:
            return 0.0
        moved = self._left * (count / self.ready)
        self._left -= moved
        self.ready -= count
        self._queue.appendleft((float("inf"), moved))
        return float(moved.sum())

    def second(self, now_s: float, arrived: int, lengths: np.ndarray) -> Second:
        """Let a second pass in which `arrived` requests come.

        Args:
            now_s: its beginning.
            arrived: how many.
            lengths: float [NUM_BINS], how many of each length; see `bins_of`.
        """
        there = len(self.starting)
        self.starting = [at_s for at_s in self.starting if at_s > now_s]
        self.ready += there - len(self.starting)
        slots = self.ready * self.service.capacity
        seen = Second(arrived=arrived, replicas=self.ready)
        if arrived:
            # In the middle of their bins.
            mean = (float(lengths @ _PLACES) / arrived - 0.5) * BIN_FRAMES
            self._frames += (mean - self._frames) * min(1.0, arrived / 500)
        for part in range(_PARTS):
            at_s = now_s + part / _PARTS
            coming = arrived * (part + 1) // _PARTS - arrived * part // _PARTS
            let_in = self._admitted(coming, slots)
            seen.refused += coming - let_in
            if let_in:
                self._queue.append((at_s, lengths * (let_in / arrived)))
            self._seat(at_s, slots, seen)
            before = self.streams
            self._work(1 / _PARTS)
            seen.streams += (before + self.streams) / 2 / _PARTS
            seen.waiting += self.waiting / _PARTS
        drained = sum(count for count, _ in self._draining)
        seen.gpu_s = float(self.ready + len(self.starting) + drained)
        return seen

    def _admitted(self, arrived: int, slots: int) -> int:
        """How many of those that come in a part of a second may stay, by the talker's rule.

        Places that come free within it are free for who comes later in it.
        """
        if not slots:
            return min(arrived, self.service.max_queued)
        gate = Admission(self.service.max_queued * max(1, self.ready), self.service.max_wait_s)
        gate.note(self.kept_s)
        inside = int(self.streams + self.waiting)
        freed = int(slots / self.kept_s / _PARTS)
        low, high = 0, arrived
        while low < high:
            middle = (low + high + 1) // 2
            try:
                gate.check(max(0, inside + middle - 1 - freed), slots)
                low = middle
            except Overloaded:
                high = middle - 1
        return low

    def _seat(self, now_s: float, slots: int, seen: Second) -> None:
        """Give free places to who waits, the oldest first."""
        while self._queue:
            free = slots - self.streams
            if free < 1:
                return
            since_s, counts = self._queue[0]
            total = float(counts.sum())
            if total < 0.5:
                self._queue.popleft()
                continue
            share = min(1.0, free / total)
            self._left += counts * share
            if since_s == float("inf"):
                seen.moved += total * share
            else:
                # Those of one part come throughout it.
                waited_s = max(0.0, now_s - since_s - 0.5 / _PARTS)
                first_s = waited_s + self.service.first_audio_s(self.streams / max(1, self.ready))
                seen.first_audio_s.append((first_s, round(total * share)))
            if share < 1.0:
                self._queue[0] = (since_s, counts * (1 - share))
                return
            self._queue.popleft()

    def _work(self, span_s: float) -> None:
        """Make frames for so long."""
        if self.ready:
            step_s = self.service.step_s(self.streams / self.ready)
            self._left = _advanced(self._left, span_s / step_s)
            self._step_s = step_s
        kept = []
        for count, left in self._draining:
            left = _advanced(left, span_s / self.service.step_s(float(left.sum()) / count))
            if left.sum() >= 0.5:
                kept.append((count, left))
        self._draining = kept


def bins_of(frames: np.ndarray) -> np.ndarray:
    """How many requests need how many frames: int64 [n] to float [NUM_BINS]."""
    bins = np.minimum(-(-frames // BIN_FRAMES), NUM_BINS - 1)
    return np.bincount(bins, minlength=NUM_BINS).astype(float)


def _advanced(left: np.ndarray, frames: float) -> np.ndarray:
    """Streams by what is left of them after so many frames; those at an end are gone."""
    bins = frames / BIN_FRAMES
    whole, part = int(bins), bins - int(bins)
    moved = np.zeros_like(left)
    if whole < len(left):
        moved[: len(left) - whole] = left[whole:]
    after = moved * (1 - part)
    after[:-1] += moved[1:] * part
    # Bin 0 is the end.
    after[0] = 0.0
    return after
