"""The stream of one request, composed from the stages; plain asyncio, the same in every placement.

A stream ends by ending, fails by raising and is cancelled by closing. Whoever closes the last
generator of a chain closes all of them, in order, before `aclose` returns.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import numpy as np

from serve_app.errors import StageFailed, StageUnavailable
from serve_app.protocols import FrameSource, SampleSource
from serve_app.types import PcmChunk, SpeechRequest

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
    name: str, chunks: AsyncGenerator[PcmChunk, None]
) -> AsyncGenerator[PcmChunk, None]:
    """Pass `chunks` on; the first one also says how long it took from here."""
    began_s, is_first = time.perf_counter(), True
    async with aclosing(chunks):
        async for chunk in chunks:
            if is_first:
                elapsed_s, is_first = time.perf_counter() - began_s, False
                chunk = replace(chunk, timings=(*chunk.timings, (name, elapsed_s)))
            yield chunk


async def next_within(items: AsyncIterator[T], limit_s: float) -> T:
    """The next item of a stream.

    Raises:
        StopAsyncIteration: there is none.
        StageUnavailable: none came within `limit_s` seconds; who makes them may hang.
    """
    timer = asyncio.timeout(limit_s)
    try:
        async with timer:
            return await anext(items)
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise StageUnavailable(f"nothing came within {limit_s:g} s") from error


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
    )


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
