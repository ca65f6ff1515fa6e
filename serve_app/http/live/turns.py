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

    def add(self, work: Work) -> None:
        self._queue.put_nowait(work)

    def close(self) -> None:
        """`run` returns once all that has been added is over."""
        self._queue.put_nowait(None)

    @property
    def is_idle(self) -> bool:
        return self._running is None and self._queue.empty()

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
