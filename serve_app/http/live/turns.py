"""What a session speaks, one after the other, each of which may be cut short."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

Work = Callable[[], Coroutine[Any, Any, None]]


class Turns:
    """A queue of work that runs in `run`; `stop` ends what runs and forgets what waits."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Work | None] = asyncio.Queue()
        self._running: asyncio.Task[None] | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, work: Work) -> None:
        self._idle.clear()
        self._queue.put_nowait(work)

    def close(self) -> None:
        """`run` returns once all that has been added is over."""
        self._queue.put_nowait(None)

    async def idle(self) -> None:
        """Wait until nothing runs or waits."""
        await self._idle.wait()

    async def run(self) -> None:
        """Raises what a work raises."""
        while (work := await self._queue.get()) is not None:
            running = self._running = asyncio.create_task(work())
            try:
                await asyncio.wait({running})
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                self._running = None
                self._note_idle()
            if not running.cancelled():
                running.result()

    async def stop(self) -> None:
        """Returns when what ran has unwound."""
        while not self._queue.empty():
            if self._queue.get_nowait() is None:  # the end stays the end
                self._queue.put_nowait(None)
                break
        running = self._running
        if running is not None:
            running.cancel()
            await asyncio.wait({running})
        self._note_idle()

    def _note_idle(self) -> None:
        if self._running is None and self._queue.empty():
            self._idle.set()
