"""The stream of one request, composed from the stages; plain asyncio, the same in every placement.

A stream ends by ending, fails by raising and is cancelled by closing. Whoever closes the last
generator of a chain closes all of them, in order, before `aclose` returns.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np

from serve_app.errors import StageFailed
from serve_app.protocols import FrameSource, SampleSource
from serve_app.types import InputTokens, PcmChunk, SpeechRequest

T = TypeVar("T")


async def synthesize(
    talker: FrameSource,
    decoder: SampleSource,
    request: SpeechRequest,
    done: np.ndarray | None = None,
) -> AsyncGenerator[PcmChunk, None]:
    """Yield the audio of `request`, without the part that `done` (int64 [T, Q]) stands for.

    Both generators are held here: a decoder that refuses a stream never touches its input. For the
    decoder, what a clone goes on from has been said as well.
    """
    before = [codes for codes in (request.context, done) if codes is not None]
    async with (
        aclosing(talker.frames(request, done)) as frames,
        aclosing(decoder.pcm(frames, _concatenate(before) if before else None)) as pcm,
    ):
        async for chunk in pcm:
            yield chunk


async def timed(
    name: str, chunks: AsyncGenerator[PcmChunk, None], beyond: str | None = None
) -> AsyncGenerator[PcmChunk, None]:
    """Pass `chunks` on; the first one also says how long it took from here, but for what the part
    `beyond` of it took.
    """
    began_s, is_first = time.perf_counter(), True
    async with aclosing(chunks):
        async for chunk in chunks:
            if is_first:
                elapsed_s, is_first = time.perf_counter() - began_s, False
                elapsed_s -= sum(part_s for part, part_s in chunk.timings if part == beyond)
                chunk = replace(chunk, timings=(*chunk.timings, (name, elapsed_s)))
            yield chunk


class Interrupted(Exception):
    """A wait was ended by its limit, or from elsewhere."""


class Waiting:
    """The waits of one stream, one after the other, each of which can be cut short.

    `asyncio.timeout` does the same for one wait, at the price of a timer and some objects. A stream
    waits for every chunk, so its waits share one timer, which is set anew only when it rings: a
    wait costs a look at the clock. Each wait may be in another task.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._rings_s = self._due_s = math.inf
        self._is_cut = False

    @property
    def is_waiting(self) -> bool:
        return self._task is not None

    async def wait(self, work: Awaitable[T], limit_s: float | None = None) -> T:
        """What `work` returns or raises.

        Raises:
            Interrupted: `interrupt` was called, or `limit_s` seconds have passed; `work` has
                unwound by then.
        """
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        if limit_s is not None:
            self._set(limit_s)
        self._task = task
        try:
            return await work
        except asyncio.CancelledError as error:
            if self._is_cut:
                self._is_cut = False
                if task.uncancel() <= cancelling:
                    raise Interrupted from error
            raise
        finally:
            self._task = None
            self._due_s = math.inf
            if self._is_cut:  # and `work` has ended in its own way nevertheless
                self._is_cut = False
                task.uncancel()

    def interrupt(self) -> None:
        """End the wait that there is, if any."""
        if self._task is not None and not self._is_cut:
            self._is_cut = True
            self._task.cancel()

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self, limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + limit_s
        if self._timer is None or self._due_s < self._rings_s:
            self.close()
            self._rings_s = self._due_s
            self._timer = loop.call_at(self._rings_s, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._due_s <= loop.time():
            self.interrupt()
        elif self._due_s < math.inf:  # another wait than the one that it was set for
            self._rings_s = self._due_s
            self._timer = loop.call_at(self._rings_s, self._ring, loop)


async def join(chunks: AsyncIterator[PcmChunk]) -> PcmChunk:
    """The whole stream as one chunk.

    Raises:
        StageFailed: the stream is empty, has a gap, or ended without a finish reason.
    """
    parts = [chunk async for chunk in chunks]
    for before, after in pairwise(parts):
        if after.first_sample != before.first_sample + len(before.samples):
            raise StageFailed(f"a gap in the audio before sample {after.first_sample}")
    if not parts or parts[-1].finish_reason is None:
        raise StageFailed("the audio ended without a finish reason")
    return PcmChunk(
        samples=_concatenate([part.samples for part in parts]),
        first_sample=parts[0].first_sample,
        codes=_concatenate([part.codes for part in parts]),
        finish_reason=parts[-1].finish_reason,
        timings=parts[0].timings,
        tokens=_read([part.tokens for part in parts if part.tokens is not None]),
    )


def _read(tokens: Sequence[InputTokens]) -> InputTokens | None:
    """What was read for all of a stream, whose units each say so for themselves."""
    if not tokens:
        return None
    return InputTokens(sum(one.text for one in tokens), sum(one.audio for one in tokens))


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
