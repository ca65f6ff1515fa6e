"""The speech decoder stage: codec frames in, PCM out, many streams at once.

The network is in `network`, the thread that runs it in `runner`; here
is the async face that the pipeline sees, and what is fed for a stream that is resumed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import numpy as np

from serve_app.config import SpeechDecoderConfig
from serve_app.errors import StageFailed
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.models.device import resolve_device
from serve_app.models.speech_decoder.jobs import Job, joined
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel, context_frames
from serve_app.models.speech_decoder.runner import SpeechDecoderRunner
from serve_app.models.speech_decoder.steps import DecoderSteps
from serve_app.types import CodecFrames, PcmChunk

# The reference decodes 300 frames at a time from a fresh state, fed with the 25 frames before them.
_REFERENCE_CHUNK_FRAMES: Final = 300
_REFERENCE_CONTEXT_FRAMES: Final = 25


@dataclass(frozen=True, slots=True)
class _Piece:
    """What to submit: codes, whether the state starts over before them, whether audio is wanted."""

    codes: np.ndarray
    reset: bool = False
    discard: bool = False


class _ExactFeed:
    """Feed every frame once."""

    def __init__(self, num_context: int) -> None:
        self._num_context = num_context

    def prime(self, done: np.ndarray) -> list[_Piece]:
        """Bring the state behind `done`, leaving out frames that no later sample depends on."""
        return [_Piece(done[-self._num_context :], discard=True)]

    def pieces(self, codes: np.ndarray) -> list[_Piece]:
        return [_Piece(codes)]

    def skip(self, codes: np.ndarray) -> None:
        """Count frames that were decoded elsewhere."""


class _ReferenceFeed:
    """Start over every 300 frames from the 25 before, as the reference's offline decode does."""

    def __init__(self) -> None:
        self._num_fed = 0
        self._recent: np.ndarray | None = None

    def prime(self, done: np.ndarray) -> list[_Piece]:
        chunk = (len(done) - 1) // _REFERENCE_CHUNK_FRAMES * _REFERENCE_CHUNK_FRAMES
        self._advance(done)
        return [_Piece(done[max(0, chunk - _REFERENCE_CONTEXT_FRAMES) :], discard=True)]

    def pieces(self, codes: np.ndarray) -> list[_Piece]:
        pieces: list[_Piece] = []
        while len(codes):
            inside = self._num_fed % _REFERENCE_CHUNK_FRAMES
            if self._recent is not None and inside == 0:
                pieces.append(_Piece(self._recent, reset=True, discard=True))
            now, codes = np.split(codes, [_REFERENCE_CHUNK_FRAMES - inside])
            pieces.append(_Piece(now))
            self._advance(now)
        return pieces

    def skip(self, codes: np.ndarray) -> None:
        self._advance(codes)

    def _advance(self, codes: np.ndarray) -> None:
        self._num_fed += len(codes)
        before = codes if self._recent is None else np.concatenate((self._recent, codes))
        self._recent = before[-_REFERENCE_CONTEXT_FRAMES:]


class StreamingSpeechDecoder:
    """What `protocols.SpeechDecoder` asks for, around a runner.

    Args:
        runner: owned from here on; `close()` closes it.
        reference_chunking: reproduce the reference's restart every 300 frames instead of the exact
            decode.
    """

    def __init__(self, runner: SpeechDecoderRunner, *, reference_chunking: bool = False) -> None:
        self.runner = runner
        self._spec = runner.spec
        self._num_context = context_frames(runner.spec)
        self._reference_chunking = reference_chunking

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: SpeechDecoderConfig,
        device: str,
        *,
        exact: bool = False,
    ) -> "StreamingSpeechDecoder":
        """Load the weights, allocate the arena and capture the small graphs.

        The large ones are `runner.capture_rest()`'s, which whoever loads other things besides
        calls when all of it is done.

        Raises:
            CheckpointError: the checkpoint lacks a tensor or has another shape.
            StageUnavailable: CUDA is asked for and absent.
        """
        resolved = resolve_device(device, config.dtype)
        model = SpeechDecoderModel(checkpoint.spec.speech_decoder)
        model.load(checkpoint.speech_tokenizer_tensors("decoder."), resolved.dtype, resolved.device)
        steps = DecoderSteps(
            model,
            max_streams=config.max_streams,
            chunk_frames=config.chunk_frames,
            batch_sizes=config.batch_sizes,
            benchmark=config.cudnn_benchmark,
            exact=exact,
        )
        runner = SpeechDecoderRunner(steps, patience_s=config.patience_s if steps.is_cuda else 0.0)
        return cls(runner, reference_chunking=config.reference_chunking)

    async def pcm(
        self, frames: AsyncIterator[CodecFrames], done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield a chunk of samples per item of `frames`; any chunking gives the same samples.

        Args:
            frames: the stream; closed when this generator ends, however it ends.
            done: int64 [T, Q], frames before the first of `frames` whose samples nobody wants. They
                prime the state.

        Yields:
            Chunks whose `first_sample` counts from frame 0 of the request, as `first_frame` of the
            items does.

        Raises:
            Overloaded: no stream slot is free. Before any sample.
            StageFailed: the device failed, or `frames` are not consecutive or not decodable.
        """
        try:
            slot = self.runner.acquire()
            try:
                async with aclosing(self.pcm_in(slot, frames, done)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                self.runner.release(slot)
        finally:
            if isinstance(frames, AsyncGenerator):
                await frames.aclose()

    async def pcm_in(
        self, slot: int, frames: AsyncIterator[CodecFrames], done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Like `pcm`, in a slot of the runner that the caller acquired and releases.

        A first item that carries its samples was decoded in this slot by a `FirstAudioDecoder`.
        """
        feed = _ReferenceFeed() if self._reference_chunking else _ExactFeed(self._num_context)
        if done is not None and len(done):
            await self._decode(slot, feed.prime(done))
        expected: int | None = None
        async for item in frames:
            if expected is not None and item.first_frame != expected:
                raise StageFailed(f"frame {item.first_frame} follows frame {expected - 1}")
            expected = item.first_frame + len(item.codes)
            began_s = time.perf_counter()
            if item.samples is not None:
                self.runner.adopt(slot)
                feed.skip(item.codes)
                samples = item.samples
            else:
                pieces = feed.pieces(item.codes) if len(item.codes) else []
                samples = await self._decode(slot, pieces, item.finish_reason is not None)
            timings: tuple[tuple[str, float], ...] = ()
            if item.elapsed_s is not None:
                decode_s = time.perf_counter() - began_s
                timings = (("talker", item.elapsed_s), ("decode", decode_s))
            yield PcmChunk(
                samples=samples,
                first_sample=item.first_frame * self._spec.samples_per_frame,
                codes=item.codes,
                finish_reason=item.finish_reason,
                timings=timings,
            )

    def stats(self) -> Mapping[str, float]:
        """Load: streams, max_streams, waiting jobs, and counters of steps and frames."""
        return self.runner.stats()

    def check_health(self) -> None:
        """Raise StageFailed after a failure of the device, StageUnavailable after `close()`."""
        self.runner.check_health()

    def close(self) -> None:
        """Stop the thread and free the graphs; idempotent."""
        self.runner.close()

    async def _decode(self, slot: int, pieces: list[_Piece], is_last: bool = False) -> np.ndarray:
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[np.ndarray]] = []
        for piece in pieces:
            futures.append(loop.create_future())
            final = is_last and piece is pieces[-1]
            job = Job(piece.codes, piece.reset, piece.discard, final, futures[-1])
            self.runner.enqueue(slot, job)
        if len(futures) == 1:
            return await futures[0]
        return joined(await asyncio.gather(*futures))
