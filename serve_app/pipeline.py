"""The stream of one request, composed from the stages; plain asyncio, the same in every placement.

A stream ends by ending, fails by raising and is cancelled by closing. Whoever closes the last
generator of a chain closes all of them, in order, before `aclose` returns.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from itertools import chain, repeat
from typing import Any

import numpy as np

from serve_app.errors import StageFailed
from serve_app.protocols import SpeechDecoder, Talker
from serve_app.types import CodecFrames, PcmChunk, SpeechRequest


async def synthesize(
    talker: Talker,
    decoder: SpeechDecoder,
    request: SpeechRequest,
    chunk_frames: tuple[int, ...],
    done: np.ndarray | None = None,
) -> AsyncGenerator[PcmChunk, None]:
    """Yield the audio of `request`, without the part that `done` (int64 [T, Q]) stands for.

    All three generators are held here: a decoder that refuses a stream never touches its input.
    """
    async with (
        aclosing(talker.frames(request, done)) as frames,
        aclosing(coalesce(frames, chunk_frames)) as chunks,
        aclosing(decoder.pcm(chunks, done)) as pcm,
    ):
        async for chunk in pcm:
            yield chunk


async def coalesce(
    frames: AsyncIterator[CodecFrames], chunk_frames: tuple[int, ...]
) -> AsyncGenerator[CodecFrames, None]:
    """Regroup a stream into items of `chunk_frames` frames; the last number repeats.

    Small first items bring the first audio early, larger ones later make a decoder step worth its
    launch. Only the last item may be shorter than planned; it alone has a finish reason.

    Raises:
        StageFailed: `frames` ended without a finish reason: an end or a loss, nobody can tell.
    """
    sizes = chain(chunk_frames, repeat(chunk_frames[-1]))
    size = next(sizes)
    try:
        held: np.ndarray | None = None
        first_frame = 0
        async for item in frames:
            if held is None:
                held, first_frame = item.codes, item.first_frame
            elif len(item.codes):
                held = np.concatenate((held, item.codes))
            # What fills an item exactly at the end of the stream leaves below, with its reason.
            while len(held) > size or (len(held) == size and item.finish_reason is None):
                yield CodecFrames(held[:size], first_frame)
                held, first_frame = held[size:], first_frame + size
                size = next(sizes)
            if item.finish_reason is not None:
                yield CodecFrames(held, first_frame, item.finish_reason)
                return
        raise StageFailed("the frames ended without a finish reason")
    finally:
        await _close(frames)


async def with_deadlines(
    chunks: AsyncGenerator[PcmChunk, None], first_s: float, gap_s: float
) -> AsyncGenerator[PcmChunk, None]:
    """Pass `chunks` on; time that the consumer takes between two chunks does not count.

    Raises:
        StageFailed: no first chunk within `first_s` seconds, or no further one within `gap_s`.
    """
    limit_s, missing = first_s, "first audio"
    async with aclosing(chunks):
        while True:
            timer = asyncio.timeout(limit_s)
            try:
                async with timer:
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                if not timer.expired():
                    raise
                raise StageFailed(f"no {missing} within {limit_s:g} s") from error
            yield chunk
            limit_s, missing = gap_s, "further audio"


async def join(chunks: AsyncIterator[PcmChunk]) -> PcmChunk:
    """The whole stream as one chunk.

    Raises:
        StageFailed: the stream is empty or ended without a finish reason.
    """
    parts = [chunk async for chunk in chunks]
    if not parts or parts[-1].finish_reason is None:
        raise StageFailed("the audio ended without a finish reason")
    return PcmChunk(
        samples=_concatenate([part.samples for part in parts]),
        first_sample=parts[0].first_sample,
        codes=_concatenate([part.codes for part in parts]),
        finish_reason=parts[-1].finish_reason,
    )


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


async def _close(iterator: AsyncIterator[Any]) -> None:
    """Close a generator; an iterator that has nothing to close is left alone."""
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
