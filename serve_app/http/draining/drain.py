"""The end of an ingress, alone (`leave`) or with its server (`begin`), and of what is left (`cut`).

What is spoken in between goes on as if nothing were. All of it is for one event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from typing import Final, TypeVar

from serve_app.errors import ServerDraining
from serve_app.http.health import Status
from serve_app.pipeline import Interrupted, Waiting
from serve_app.resumption import Speak
from serve_app.types import PcmChunk, SpeechRequest

REASON: Final = "The server is shutting down and takes no new speech. Please try again."
_LEAVING: Final = "This connection is about to be closed. Please connect again."
_CUT: Final = "The server has shut down before the end of the speech."

T = TypeVar("T")


class Drain:
    """
    Attributes:
        num_open: requests that are being answered, and WebSockets.
    """

    def __init__(self) -> None:
        self.num_open = 0
        self._has_begun = self._is_leaving = self._is_cut = False
        # Futures and no event: an application may be served by one loop after another.
        self._expecting: set[asyncio.Future[None]] = set()
        self._waiting: set[Waiting] = set()

    @property
    def has_begun(self) -> bool:
        return self._has_begun

    async def ending(self) -> None:
        """Wait for `begin` or `leave`."""
        if self._has_begun or self._is_leaving:
            return
        expected = asyncio.get_running_loop().create_future()
        self._expecting.add(expected)
        try:
            await expected
        finally:
            self._expecting.discard(expected)

    def begin(self) -> None:
        """The server ends, and nothing new begins."""
        self._has_begun = True
        self._tell()

    def leave(self) -> None:
        """The ingress is taken out of service and others stay: what lasts goes there, between two
        things that it speaks. A request that still comes here is answered as ever.
        """
        self._is_leaving = True
        self._tell()

    def _tell(self) -> None:
        for expected in self._expecting:
            if not expected.done():
                expected.set_result(None)

    def cut(self) -> None:
        """End what is left: whoever waits within `until_cut`, or comes there later, fails."""
        self.begin()
        self._is_cut = True
        for waiting in list(self._waiting):
            waiting.interrupt()

    @contextmanager
    def counted(self) -> Iterator[None]:
        """A request while it is answered."""
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    def check(self) -> None:
        """
        Raises:
            ServerDraining: nothing new may begin.
        """
        if self.has_begun:
            raise ServerDraining(REASON)

    def check_session(self) -> None:
        """As `check`, of what a connection speaks next.

        Raises:
            ServerDraining: it is to be closed.
        """
        self.check()
        if self._is_leaving:
            raise ServerDraining(_LEAVING)

    async def until_cut(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work()` returns or raises.

        Raises:
            ServerDraining: `cut` came first; what `work` began has unwound by then.
        """
        self._check_cut()
        with self._waits() as waiting:
            return await self._next(waiting, work())

    def speaking(self, speak: Speak) -> Speak:
        """`speak`, each stream of which fails with ServerDraining at `cut`."""

        async def stream(request: SpeechRequest) -> AsyncGenerator[PcmChunk, None]:
            with self._waits() as waiting:
                async with aclosing(speak(request)) as chunks:
                    while True:
                        self._check_cut()
                        try:
                            chunk = await self._next(waiting, anext(chunks))
                        except StopAsyncIteration:
                            return
                        yield chunk

        return stream

    def telling(self, status: Callable[[], Awaitable[Status]]) -> Callable[[], Awaitable[Status]]:
        """`status`, which says so while the server drains."""

        async def told() -> Status:
            now = await status()
            if not self.has_begun:
                return now
            return replace(now, state="draining", reason=REASON)

        return told

    @contextmanager
    def _waits(self) -> Iterator[Waiting]:
        waiting = Waiting()
        self._waiting.add(waiting)
        try:
            yield waiting
        finally:
            self._waiting.discard(waiting)

    async def _next(self, waiting: Waiting, work: Awaitable[T]) -> T:
        try:
            return await waiting.wait(work)
        except Interrupted as error:
            raise ServerDraining(_CUT) from error

    def _check_cut(self) -> None:
        if self._is_cut:
            raise ServerDraining(_CUT)
