"""The load that a stage goes through before it is ready, so that no user's request is a first.

What is compiled, allocated or looked up late depends on how many requests come at once, on how long
their prompts are and on how far a stream has come: each is met here in every size that matters.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Final

import numpy as np

from serve_app.errors import InvalidRequest
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.types import ClonedVoice, CodecFrames, NamedVoice, SpeechRequest, Voice

# A whole chunk of each length of the usual ramp (1, 3, 8, 12 frames).
_LONG_STREAM: Final = 24
_SHORT_STREAM: Final = 2
# Frames of a recording, in every second stream of a checkpoint that clones voices.
_RECORDING: Final = 40

Make = Callable[[SpeechRequest], AsyncGenerator[Any, None]]
Decode = Callable[..., AsyncGenerator[Any, None]]


async def rehearse(speak: Make, spec: ModelSpec, most: int, positions: int) -> None:
    """Make short streams alone and together.

    Args:
        speak: yields the items of a stream.
        spec: of the checkpoint.
        most: streams at once.
        positions: that the talker computes in one step; prompts are made shorter and longer.

    Raises:
        SpeechError: as `speak`, but for prompts that are too long.
    """
    await _finish(speak, _request(spec, "Hello.", _LONG_STREAM))
    for words in _lengths(positions):
        try:
            await _finish(speak, _request(spec, "word " * words, _SHORT_STREAM))
        except InvalidRequest:  # more than fits into one request
            break
    for size in _sizes(most):
        requests = [_request(spec, "Hello. " * (1 + i % 3), _SHORT_STREAM, i) for i in range(size)]
        await asyncio.gather(*(_finish(speak, request) for request in requests))


async def rehearse_decoder(
    pcm: Decode, num_code_groups: int, chunk_frames: Sequence[int], most: int
) -> None:
    """Decode streams alone and together, from their beginning and resumed.

    Args:
        pcm: as `protocols.SpeechDecoder.pcm`.
        num_code_groups: Q.
        chunk_frames: of a stream's items.
        most: streams at once.

    Raises:
        SpeechError: as `pcm`.
    """
    done = np.zeros((sum(chunk_frames), num_code_groups), np.int64)
    await _finish(partial(pcm, done=done), _items(num_code_groups, chunk_frames))
    for size in (1, *_sizes(most)):
        streams = [_items(num_code_groups, chunk_frames) for _ in range(size)]
        await asyncio.gather(*(_finish(pcm, stream) for stream in streams))


async def _items(
    num_code_groups: int, chunk_frames: Sequence[int]
) -> AsyncGenerator[CodecFrames, None]:
    """One item of each length; the last one tells the end apart, as a talker does."""
    position = 0
    for length in chunk_frames:
        yield CodecFrames(np.zeros((length, num_code_groups), np.int64), position)
        position += length
    yield CodecFrames(np.zeros((1, num_code_groups), np.int64), position, "stop")


def _sizes(most: int) -> Iterator[int]:
    size = 2
    while size < most:
        yield size
        size *= 2
    if most > 1:
        yield most


def _lengths(positions: int) -> Iterator[int]:
    words = 16
    while words < positions:
        yield words
        words *= 2
    yield positions + positions // 2  # computed in two steps


async def _finish(speak: Callable[[Any], AsyncGenerator[Any, None]], request: Any) -> None:
    async with aclosing(speak(request)) as items:
        async for _ in items:
            pass


def _request(spec: ModelSpec, text: str, frames: int, seed: int = 0) -> SpeechRequest:
    return SpeechRequest(
        request_id=f"rehearsal-{len(text)}-{seed}",
        model="",
        text=text,
        voice=_voice(spec, in_context=seed % 2 == 1),
        language="auto",
        seed=seed,
        instructions="A calm voice." if spec.task == "voice_design" else None,
        min_new_tokens=frames,
        max_new_tokens=frames,
    )


def _voice(spec: ModelSpec, *, in_context: bool) -> Voice | None:
    """A speaker, or a recording of nobody; None: the checkpoint makes one up."""
    if spec.voice_encoder is None:
        return next((NamedVoice(name) for name in spec.talker.speaker_ids), None)
    vector = np.zeros(spec.talker.transformer.hidden_size, np.float32)
    if not in_context:
        return ClonedVoice(vector)
    codes = np.zeros((_RECORDING, spec.talker.num_code_groups), np.int64)
    return ClonedVoice(vector, codes, "Hello.")
