"""Whether a thread that has something to do still gets on."""

import math


class Progress:
    """When the thread last got on; nothing is expected of one that rests.

    Every `now_s` is a moment of `time.monotonic`. `rest` and `wake` are called under one lock, the
    former by the thread, the latter by who gives it something to do.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._since_s: float | None = None

    def step(self, now_s: float) -> None:
        """The thread has got on."""
        self._since_s = now_s

    def rest(self) -> None:
        """The thread waits for something to do."""
        self._since_s = None

    def wake(self, now_s: float) -> None:
        """The thread has something to do from now on, if it had not before."""
        if self._since_s is None:
            self._since_s = now_s

    def is_stalled(self, now_s: float, excused_s: float = -math.inf) -> bool:
        """Whether it should have got on by now; what passed before `excused_s` does not count."""
        since_s = self._since_s
        return since_s is not None and now_s - max(since_s, excused_s) > self.limit_s
