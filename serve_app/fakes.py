"""Deterministic stand-ins for the stages: a sine voice without torch, for tests and load clients.

The codes are a function of the seed and the frame, the samples one of the codes and the frame, so
any chunking, any interruption and any replica gives the same audio, as with the real stages.
"""

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.chunking import FramesHeld
from serve_app.errors import SpeechError
from serve_app.types import (
    VOICE_SOURCES,
    CodecFrames,
    EncodedClip,
    FinishReason,
    Health,
    InputTokens,
    ModelCard,
    PcmChunk,
    SpeechRequest,
    TaskType,
)

Sleep = Callable[[float], Awaitable[Any]]

_CODEBOOK_SIZE = 2048
_TONE_HZ = 220.0
_VECTOR_SIZE = 8


def fake_card(**changes: Any) -> ModelCard:
    """The card of a small custom-voice model, with `changes` applied."""
    task: TaskType = changes.get("task", "custom_voice")
    card = ModelCard(
        name="qwen3-tts-fake",
        task=task,
        size="1b7",
        languages=("auto", "chinese", "english", "german", "japanese"),
        voices=("vivian", "serena", "ryan", "aiden", "dylan"),
        voice_sources=VOICE_SOURCES[task],
        supports_instructions=True,
        sample_rate_hz=24000,
        samples_per_frame=1920,
        max_new_tokens=256,
        path="fakes/qwen3-tts-fake",
        voice_languages={"dylan": "beijing_dialect"},
        control_strings=("<|im_start|>", "<|im_end|>", "<tts_pad>", "<think>"),
        speaker_vector_size=_VECTOR_SIZE if task == "base" else None,
    )
    return replace(card, **changes)


class FakeTalker:
    """Makes `num_frames` frames, at most what the request allows.

    Args:
        chunk_frames: frames per item: first, second, ...; the last number repeats.
        frame_s: time before each frame, spent in `sleep`.
        fail_at: number of the frame that raises `error` instead.
    """

    def __init__(
        self,
        num_frames: int = 10,
        num_code_groups: int = 4,
        chunk_frames: Sequence[int] = (1,),
        frame_s: float = 0.0,
        sleep: Sleep = asyncio.sleep,
        fail_at: int | None = None,
        error: SpeechError | None = None,
    ) -> None:
        self._num_frames = num_frames
        self._num_code_groups = num_code_groups
        self._chunk_frames = chunk_frames
        self._frame_s = frame_s
        self._sleep = sleep
        self._fail_at = fail_at
        self._error = error
        self.requests: list[SpeechRequest] = []
        self.running = 0

    async def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        self.requests.append(request)
        self.running += 1
        try:
            limit = request.max_new_tokens
            cut = limit is not None and limit < self._num_frames
            total = limit if cut and limit is not None else self._num_frames
            reason: FinishReason = "length" if cut else "stop"
            first = 0 if done is None else len(done)
            num_context = 0 if request.context is None else len(request.context)
            held = FramesHeld(self._chunk_frames, self._num_code_groups, lanes=1)
            lane = held.open(first)
            for frame in range(first, total):
                await self._sleep(self._frame_s)
                if frame == self._fail_at and self._error is not None:
                    raise self._error
                last = frame == total - 1
                codes = fake_codes(request.seed, frame, self._num_code_groups)
                if held.add(np.array([lane]), codes) or last:
                    item = held.take(lane, reason if last else None)
                    # Words, as the tokenizer of a model without one.
                    words = f"{request.text} {request.instructions or ''}".split()
                    read = InputTokens(len(words), num_context)
                    yield item if item.first_frame else replace(item, tokens=read)
        finally:
            self.running -= 1

    def stats(self) -> Mapping[str, float]:
        return {"running": self.running, "waiting": 0}

    def health(self) -> Health:
        return Health()

    def close(self) -> None:
        return


class FakeSpeechDecoder:
    """Turns each frame into a piece of a tone whose loudness is a function of its codes."""

    def __init__(self, sample_rate_hz: int = 24000, samples_per_frame: int = 1920) -> None:
        self._sample_rate_hz = sample_rate_hz
        self._samples_per_frame = samples_per_frame
        self.streams = 0

    async def pcm(
        self, frames: AsyncIterator[CodecFrames], done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        del done  # no state to prime: an item says where it stands
        self.streams += 1
        try:
            async for item in frames:
                first_sample = item.first_frame * self._samples_per_frame
                samples = self.decode(item.codes, item.first_frame)
                chunk = PcmChunk(samples, first_sample, item.codes, item.finish_reason)
                yield replace(chunk, tokens=item.tokens)
        finally:
            self.streams -= 1

    def decode(self, codes: np.ndarray, first_frame: int = 0) -> np.ndarray:
        """int16 [T * samples_per_frame] of codes int64 [T, Q]."""
        amplitude = (1000 + 4 * codes.sum(axis=1) % 8000).repeat(self._samples_per_frame)
        position = first_frame * self._samples_per_frame + np.arange(len(amplitude))
        tone = np.sin(2 * np.pi * _TONE_HZ * position / self._sample_rate_hz)
        return np.rint(amplitude * tone).astype(np.int16)

    def stats(self) -> Mapping[str, float]:
        return {"streams": self.streams}

    def health(self) -> Health:
        return Health()

    def close(self) -> None:
        return


class FakeVoiceEncoder:
    """Makes a vector and codes that are a function of the samples.

    Args:
        error: what every call raises instead.
    """

    def __init__(
        self,
        vector_size: int = _VECTOR_SIZE,
        num_code_groups: int = 4,
        samples_per_frame: int = 1920,
        error: SpeechError | None = None,
    ) -> None:
        self._vector_size = vector_size
        self._num_code_groups = num_code_groups
        self._samples_per_frame = samples_per_frame
        self._error = error
        self.clips: list[np.ndarray] = []

    async def encode(self, samples: np.ndarray) -> EncodedClip:
        self.clips.append(samples)
        if self._error is not None:
            raise self._error
        seed = zlib.crc32(np.ascontiguousarray(samples, dtype=np.float32).tobytes())
        vector = np.random.default_rng(seed).standard_normal(self._vector_size, dtype=np.float32)
        frames = -(-len(samples) // self._samples_per_frame)
        codes = [fake_codes(seed, frame, self._num_code_groups) for frame in range(frames)]
        empty = np.zeros((0, self._num_code_groups), dtype=np.int64)
        return EncodedClip(vector, np.concatenate([empty, *codes]))


def fake_codes(seed: int, frame: int, num_code_groups: int = 4) -> np.ndarray:
    """int64 [1, Q]: the codes of one frame."""
    groups = np.arange(num_code_groups, dtype=np.int64)
    return ((seed % _CODEBOOK_SIZE + 31 * frame + 7 * groups) % _CODEBOOK_SIZE)[None, :]
