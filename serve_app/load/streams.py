"""Streams that can be told to leave the replica which makes them: it hangs, or is to go.

Who waits for an item of a process that was stopped would wait until Serve has killed it, or for a
deadline that has to be long. The router learns of it within seconds. Cancelling the call is no way
to say so: that is between Serve and the other end. Here the wait itself ends.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Final, TypeVar

from serve_app.errors import StageUnavailable

T = TypeVar("T")


class Stream:
    """The reading end of one call; belongs to its event loop.

    Attributes:
        heard_s: when its last item came, by `clock`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.heard_s = float("-inf")
        self._clock = clock
        self._group: Streams | None = None
        self._timer: asyncio.Timeout | None = None
        self._reason: str | None = None

    @property
    def has_left(self) -> bool:
        return self._reason is not None

    async def next(self, items: AsyncIterator[T]) -> T:
        """The next item of `items`.

        Raises:
            StopAsyncIteration: there is none.
            StageUnavailable: the stream was told to leave.
        """
        try:
            if self._reason is None:
                async with asyncio.timeout(None) as self._timer:
                    item = await anext(items)
                self.heard_s = self._clock()
                return item
        except TimeoutError:
            if self._reason is None:
                raise
        finally:
            self._timer = None
        raise StageUnavailable(self._reason)

    def leave(self, reason: str) -> None:
        """Have whoever waits, or comes next, fail with StageUnavailable."""
        self._reason = reason
        if self._timer is not None:
            self._timer.reschedule(asyncio.get_running_loop().time())

    def join(self, group: "Streams | None") -> None:
        """Be one of `group` and of no other; a stream that is over is of none."""
        if self._group is not None:
            self._group.members.discard(self)
        self._group = group
        if group is not None:
            group.members.add(self)


class Streams:
    """Those of one replica."""

    def __init__(self) -> None:
        self.members: set[Stream] = set()

    @property
    def heard_s(self) -> float:
        """When the last item of any of them came."""
        return max((stream.heard_s for stream in self.members), default=float("-inf"))

    def leave(self, reason: str, at_most: int | None = None) -> int:
        """Have them leave, all or some; how many did."""
        leaving = list(self.members)[:at_most]
        for stream in leaving:
            stream.leave(reason)
            stream.join(None)
        return len(leaving)


# The stream of the call that is being made, for the router, which Serve calls in tasks of its own.
CALLING: Final[ContextVar[Stream | None]] = ContextVar("calling", default=None)
