"""Who may wait for a place among streams that run: arithmetic, without a clock or a thread.

The talker asks it of its engine's places, the ingress of those of all live replicas.
"""

from typing import Final

from serve_app.errors import Full, Overloaded
from serve_app.types import Stage

# How much the last stream counts in the mean.
_WEIGHT: Final = 1 / 16
_LEAST_RETRY_S: Final = 1.0
# Of the places, for listeners who come while work in the background takes what is free.
_KEPT_FREE: Final = 0.25
# And for those of a higher priority, while some come.
_RESERVED: Final = 0.125
# What a stream takes while none has ended: a sentence or two. With nothing assumed, a burst at the
# start would be let in whole and its last ones wait for many times what anybody may wait for.
_UNKNOWN_S: Final = 2.0
# The share of requests refused of late above which a wait buys nobody anything: who comes next
# takes a place as soon as it is free. Then no more of the longest wait is allowed than keeps places
# from standing free. A Poisson stream that just fills the places has half of this share.
_CROWDED: Final = 1 / 20
_OF_LATE: Final = 1 / 64
_IN_CROWD: Final = 1 / 8
# Of the time of a stream: so much of all places may seem taken because others' streams have ended
# since they were last heard of. A crowd that was none would go on by what it refuses.
_UNSURE: Final = 1 / 48


class Admission:
    """Predicts how long a request would wait, and refuses what would wait too long.

    A place is free every `service / places` seconds, where `service` is how long streams keep
    theirs, by the mean of those that ended of late. While many are refused, those that are let in
    wait for an eighth of the longest wait.

    Args:
        max_queued: requests that wait for a place, at most.
        max_wait_s: longest predicted wait.
        stage: whose places they are, for the error; None: of no single stage.
    """

    def __init__(self, max_queued: int, max_wait_s: float, stage: Stage | None = None) -> None:
        self._max_queued = max_queued
        self._max_wait_s = max_wait_s
        self._stage: Stage | None = stage
        self._service_s: float | None = None
        # Share of those that were refused since nobody could be let in.
        self._refused = 0.0

    def check(
        self,
        inside: int,
        places: int,
        *,
        goes_on: bool = False,
        background: bool = False,
        gives_way: bool = False,
        longest_wait_s: float | None = None,
        may_ask: bool = False,
        counts: bool = True,
    ) -> bool:
        """Let a request in beside `inside` others, or not.

        Args:
            inside: requests that run or wait.
            places: streams that advance together; 0: nobody is there at present, and who comes
                waits until somebody is.
            goes_on: it has been heard already, and is not sent away for a wait.
            background: nobody listens; it comes in only where enough places stay free.
            gives_way: others of a higher priority come; the last places and all waiting are theirs.
            longest_wait_s: it may wait for no longer than this either: who sends it knows of a
                crowd that is not seen from here.
            may_ask: `inside` may be more than there are, and who has the places can be asked. Where
                nobody waits for a place, one too many there would refuse who could be served.
            counts: it is part of the crowd before these places, whose share of refusals shortens
                the wait.

        Returns:
            Whether there is room by these counts; else it has to be asked for.

        Raises:
            Full: it would wait too long, or too many wait; says when to come again.
            Overloaded: others could still come in.
        """
        if background and inside >= places - int(places * _KEPT_FREE):
            raise Overloaded(
                f"{inside} requests are running or waiting; the places left are for listeners",
                _LEAST_RETRY_S,
                stage=self._stage,
            )
        if gives_way and not goes_on and inside >= places - int(places * _RESERVED) > 0:
            raise Overloaded(
                f"{inside} requests are running or waiting; the places left are for requests of a"
                " higher priority",
                _LEAST_RETRY_S,
                stage=self._stage,
            )
        waiting = inside - places
        wait_s = max(0, waiting + 1) * self._mean_s / places if places else 0.0
        longest_s = self.longest_wait_s
        if longest_wait_s is not None:
            longest_s = min(longest_s, longest_wait_s)
        is_full = waiting >= 0 and (
            waiting >= self._max_queued or (wait_s > longest_s and not goes_on)
        )
        may_wait = self._max_queued > 0 and self._mean_s <= self._max_wait_s * places
        is_refused = is_full and (may_wait or not may_ask)
        if counts:
            self._refused += _OF_LATE * (is_refused - self._refused)
        if is_refused:
            raise Full(
                f"{inside} requests are running or waiting, and {places} run together;"
                f" the next one would wait for {wait_s:.1f} s",
                max(_LEAST_RETRY_S, wait_s - self._max_wait_s),
                stage=self._stage,
            )
        return not is_full

    @property
    def _mean_s(self) -> float:
        return _UNKNOWN_S if self._service_s is None else self._service_s

    @property
    def is_crowded(self) -> bool:
        """Whether many were refused of late."""
        return self._refused > _CROWDED

    @property
    def longest_wait_s(self) -> float:
        """The longest predicted wait with which anybody is let in now."""
        if not self.is_crowded:
            return self._max_wait_s
        return min(self._max_wait_s, max(self._max_wait_s * _IN_CROWD, self._mean_s * _UNSURE))

    def limit(self, max_queued: int, max_wait_s: float) -> None:
        """Other limits, from now on."""
        self._max_queued = max_queued
        self._max_wait_s = max_wait_s

    def note(self, service_s: float) -> None:
        """A stream has left its place, which it had for so long."""
        before = service_s if self._service_s is None else self._service_s
        self._service_s = before + _WEIGHT * (service_s - before)

    def forget(self) -> None:
        """What ended so far was not what users ask for."""
        self._service_s = None
