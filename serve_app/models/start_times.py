"""Where the time of a start goes: each part of loading ends with a `lap`.

Laps are disjoint and leave nothing out, so that their sum is the start. A process loads its stages
once and in one order, on whichever threads; hence one clock per process.
"""

import threading
import time
from collections.abc import Callable


class StartTimes:
    """A clock with laps; any thread may use it.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_s = clock()
        self._parts: dict[str, float] = {}

    def begin(self) -> None:
        """Forget what was; the first part begins now."""
        with self._lock:
            self._parts.clear()
            self._last_s = self._clock()

    def lap(self, part: str) -> None:
        """What was done since the last lap was `part`, or some more of it."""
        with self._lock:
            now_s = self._clock()
            self._parts[part] = self._parts.get(part, 0.0) + now_s - self._last_s
            self._last_s = now_s

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of each part, in the order in which they were done."""
        with self._lock:
            return dict(self._parts)


start_times = StartTimes()
