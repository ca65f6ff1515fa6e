"""A stream taken from its source as soon as it is made, for a reader who may be slower."""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Generic, Protocol, TypeVar

import numpy as np

# A reader who has not come back after so long is taken for a slow one.
_PATIENCE_S: Final = 0.05


class Sampled(Protocol):
    """What carries samples, int16 [N]."""

    @property
    def samples(self) -> np.ndarray: ...


T = TypeVar("T", bound=Sampled)


async def read_ahead(source: AsyncGenerator[T, None], max_samples: int) -> AsyncGenerator[T, None]:
    """Pass `source` on, and where the reader is slow, read it until `max_samples` wait here.

    Whoever listens at the speed of speech would hold a decoder slot and a talker's stream for as
    long; so they are free when the audio is made. A reader who waits for each chunk needs nobody to
    read ahead, and gets it straight from the source. What the source raises comes after the chunks
    before it; closing closes the source first.
    """
    ahead = _Ahead(source, max_samples)
    try:
        while True:
            try:
                chunk = await (anext(source) if ahead.filling is None else ahead.next())
            except StopAsyncIteration:
                return
            ahead.wait_for_reader()
            yield chunk
            ahead.reader_is_back()
    finally:
        await ahead.close()


class _Ahead(Generic[T]):
    """Looks out for a slow reader, and reads for it from then on."""

    def __init__(self, source: AsyncGenerator[T, None], max_samples: int) -> None:
        self._source = source
        self._max_samples = max_samples
        self._held: deque[T] = deque()
        self._num_samples = 0
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._due_s = math.inf
        self.filling: asyncio.Task[None] | None = None

    def wait_for_reader(self) -> None:
        if self.filling is None:
            self._due_s = self._loop.time() + _PATIENCE_S
            if self._timer is None:
                self._timer = self._loop.call_at(self._due_s, self._look)

    def reader_is_back(self) -> None:
        self._due_s = math.inf

    def _look(self) -> None:
        self._timer = None
        if self._due_s <= self._loop.time():
            self.filling = self._loop.create_task(self._fill())
            self.filling.add_done_callback(lambda _: self._changed.set())
        elif self._due_s < math.inf:  # the reader has come back, and gone with another chunk
            self._timer = self._loop.call_at(self._due_s, self._look)

    async def _fill(self) -> None:
        async with aclosing(self._source):
            async for chunk in self._source:
                self._held.append(chunk)
                self._num_samples += len(chunk.samples)
                self._changed.set()
                while self._num_samples >= self._max_samples:
                    self._room.clear()
                    await self._room.wait()

    async def next(self) -> T:
        """The next chunk of those that are held; raises what the source raises, or its end."""
        assert self.filling is not None
        while not self._held:
            if self.filling.done():
                self.filling.result()
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        chunk = self._held.popleft()
        self._num_samples -= len(chunk.samples)
        self._room.set()
        return chunk

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.filling is not None:
            self.filling.cancel()
            await asyncio.gather(self.filling, return_exceptions=True)
        await self._source.aclose()
