"""Who may wait for a place among the running streams: arithmetic, without a clock or a thread."""

from typing import Final

from serve_app.errors import Overloaded

# How much the last stream counts in the mean.
_WEIGHT: Final = 1 / 16
_LEAST_RETRY_S: Final = 1.0
# Of the places, how many stay free of work in the background, for listeners that come.
_KEPT_FREE: Final = 1 / 4


class Admission:
    """Predicts how long a request would wait, and refuses what would wait too long.

    A place is free every `service / capacity` seconds, where `service` is how long streams keep
    theirs, by the mean of those that ended of late. Before the first has ended nothing is known,
    and only the number of those that wait is bounded.

    Args:
        capacity: streams that advance together.
        max_queued: requests that wait for a place, at most.
        max_wait_s: longest predicted wait.
    """

    def __init__(self, capacity: int, max_queued: int, max_wait_s: float) -> None:
        self._capacity = capacity
        self._max_queued = max_queued
        self._max_wait_s = max_wait_s
        self._service_s: float | None = None

    def check(self, inside: int, *, goes_on: bool, background: bool = False) -> None:
        """Let a request in beside `inside` others, or not.

        Args:
            inside: requests that run or wait.
            goes_on: it has been heard already, and is not sent away for a wait.
            background: nobody listens; it comes in only where enough places stay free.

        Raises:
            Overloaded: it would wait too long, or too many wait; says when to come again.
        """
        if background and inside >= self._capacity - int(self._capacity * _KEPT_FREE):
            raise Overloaded(
                f"{inside} requests are running or waiting; the places left are for listeners",
                _LEAST_RETRY_S,
                stage="talker",
            )
        waiting = inside - self._capacity
        if waiting < 0:
            return
        wait_s = (waiting + 1) * (self._service_s or 0.0) / self._capacity
        if waiting >= self._max_queued or (wait_s > self._max_wait_s and not goes_on):
            raise Overloaded(
                f"{inside} requests are running or waiting, and {self._capacity} run together;"
                f" the next one would wait for {wait_s:.1f} s",
                max(_LEAST_RETRY_S, wait_s - self._max_wait_s),
                stage="talker",
            )

    def note(self, service_s: float) -> None:
        """A stream has left its place, which it had for so long."""
        before = service_s if self._service_s is None else self._service_s
        self._service_s = before + _WEIGHT * (service_s - before)

    def forget(self) -> None:
        """What ended so far was not what users ask for."""
        self._service_s = None
