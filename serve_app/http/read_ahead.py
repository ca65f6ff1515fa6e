"""A stream taken from its source as soon as it is made, for a reader who may be slower."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol, TypeVar

import numpy as np


class Sampled(Protocol):
    """What carries samples, int16 [N]."""

    @property
    def samples(self) -> np.ndarray: ...


T = TypeVar("T", bound=Sampled)


async def read_ahead(source: AsyncGenerator[T, None], max_samples: int) -> AsyncGenerator[T, None]:
    """Pass `source` on, and read it until `max_samples` wait here.

    Whoever listens at the speed of speech would hold a decoder slot and a talker's stream for as
    long; so they are free when the audio is made. What the source raises comes after the chunks
    before it; closing closes the source first.
    """
    held: deque[T] = deque()
    num_samples = 0
    changed, room = asyncio.Event(), asyncio.Event()

    async def fill() -> None:
        nonlocal num_samples
        async with aclosing(source):
            async for chunk in source:
                held.append(chunk)
                num_samples += len(chunk.samples)
                changed.set()
                while num_samples >= max_samples:
                    room.clear()
                    await room.wait()

    filling = asyncio.create_task(fill())
    filling.add_done_callback(lambda _: changed.set())
    try:
        while True:
            while not held:
                if filling.done():
                    filling.result()
                    return
                changed.clear()
                await changed.wait()
            chunk = held.popleft()
            num_samples -= len(chunk.samples)
            room.set()
            yield chunk
    finally:
        filling.cancel()
        await asyncio.gather(filling, return_exceptions=True)
