"""Streams that can be told to leave the replica which makes them: it hangs, or is to go.

Who waits for an item of a process that was stopped would wait until Serve has killed it, or for a
deadline that has to be long. The router learns of it within seconds. Cancelling the call is no way
to say so: that is between Serve and the other end. Here the wait itself ends.
"""

import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Final, TypeVar

from serve_app.errors import StageUnavailable
from serve_app.pipeline import Interrupted, Waiting

# So long a stream counts as late after its listener had to wait: the ones of a replica that is only
# just too slow are never late all at once.
LATE_S: Final = 2.0

T = TypeVar("T")


class Stream:
    """The reading end of one call; belongs to its event loop.

    Args:
        first_s: of a stream that somebody listens to, how long the first audio may take.

    Attributes:
        heard_s: when its last item came, by `clock`.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        first_s: float | None = None,
    ) -> None:
        self.heard_s = float("-inf")
        # Until when its listener has something to hear; before the first audio, waits for it.
        self._due_s = float("inf") if first_s is None else clock() + first_s
        self._is_heard = False
        self._asked_s = self._late_s = float("-inf")
        self._clock = clock
        self._group: Streams | None = None
        self._waiting = Waiting()
        self._reason: str | None = None

    @property
    def is_late(self) -> bool:
        """Whether its listener has nothing to hear, or had nothing of late, or waits too long for
        the first. What a reader has not asked for in time is not late.
        """
        now_s = self._clock()
        is_awaited = self._waiting.is_waiting and self._asked_s <= self._due_s < now_s
        return is_awaited or now_s - self._late_s < LATE_S

    def made(self, audio_s: float) -> None:
        """So much audio has come."""
        now_s = self._clock()
        if self._is_heard and self._asked_s <= self._due_s < now_s:
            self._late_s = now_s
        self._due_s = audio_s + (max(self._due_s, now_s) if self._is_heard else now_s)
        self._is_heard = True

    @property
    def has_left(self) -> bool:
        return self._reason is not None

    async def next(self, items: AsyncIterator[T]) -> T:
        """The next item of `items`.

        Raises:
            StopAsyncIteration: there is none.
            StageUnavailable: the stream was told to leave.
        """
        if self._reason is None:
            self._asked_s = self._clock()
            try:
                item = await self._waiting.wait(anext(items))
            except Interrupted:
                pass
            else:
                self.heard_s = self._clock()
                return item
        raise StageUnavailable(self._reason)

    def leave(self, reason: str) -> None:
        """Have whoever waits, or comes next, fail with StageUnavailable."""
        self._reason = reason
        self._waiting.interrupt()

    def refused(self) -> None:
        """Its replica had no room for it."""
        if self._group is not None and self._group.refused is not None:
            self._group.refused()

    def told(self, num_streams: int) -> None:
        """Its replica has so many streams."""
        if self._group is not None and self._group.told is not None:
            self._group.told(num_streams)

    def join(self, group: "Streams | None") -> None:
        """Be one of `group` and of no other; a stream that is over is of none."""
        if self._group is not None:
            self._group.members.discard(self)
        self._group = group
        if group is not None:
            group.members.add(self)


class Streams:
    """Those of one replica.

    Args:
        refused: called when it has had no room for one of them.
        told: called with the number of streams that it says it has.
    """

    def __init__(
        self,
        refused: Callable[[], None] | None = None,
        told: Callable[[int], None] | None = None,
    ) -> None:
        self.members: set[Stream] = set()
        self.refused = refused
        self.told = told

    @property
    def heard_s(self) -> float:
        """When the last item of any of them came."""
        return max((stream.heard_s for stream in self.members), default=float("-inf"))

    @property
    def late(self) -> int:
        """How many are late."""
        return sum(stream.is_late for stream in self.members)

    def leave(self, reason: str, at_most: int | None = None) -> int:
        """Have them leave, all or some; how many did."""
        leaving = list(self.members)[:at_most]
        for stream in leaving:
            stream.leave(reason)
            stream.join(None)
        return len(leaving)


# The stream of the call that is being made, for the router, which Serve calls in tasks of its own.
CALLING: Final[ContextVar[Stream | None]] = ContextVar("calling", default=None)
