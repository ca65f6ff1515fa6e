"""Whether a thread that has something to do still gets on."""

import math


class Progress:
    """When the thread last got on; nothing is expected of one that rests.

    Every `now_s` is a moment of `time.monotonic`. `rest` and `wake` are called under one lock, the
    former by the thread, the latter by who gives it something to do.
    """

    def __init__(self) -> None:
        self._since_s: float | None = None
        self._last_s: float | None = None

    def step(self, now_s: float) -> None:
        """The thread has got on."""
        self._since_s = self._last_s = now_s

    def rest(self) -> None:
        """The thread waits for something to do."""
        self._since_s = None

    def wake(self, now_s: float) -> None:
        """The thread has something to do from now on, if it had not before."""
        if self._since_s is None:
            self._since_s = now_s

    def busy_s(self, now_s: float, excused_s: float = -math.inf) -> float:
        """How long it has not got on; what passed before `excused_s` does not count."""
        since_s = self._since_s
        return 0.0 if since_s is None else max(0.0, now_s - max(since_s, excused_s))

    def ago_s(self, now_s: float) -> float | None:
        """How long ago it last got on; None: not yet."""
        return None if self._last_s is None else now_s - self._last_s
