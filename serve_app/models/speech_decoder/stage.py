"""The speech decoder stage: codec frames in, PCM out, many streams at once.

The network is in `network`, the thread that runs it in `runner`; here is the async face that the
pipeline sees, and what is fed for a stream that is resumed.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing

import numpy as np

from serve_app.config import SpeechDecoderConfig
from serve_app.errors import StageFailed
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.models.device import resolve_device
from serve_app.models.late_kernels import late_kernels
from serve_app.models.rehearsal import rehearse_decoder
from serve_app.models.speech_decoder.algorithms import Trials
from serve_app.models.speech_decoder.jobs import DecodeJob
from serve_app.models.speech_decoder.network.model import (
    SpeechDecoderModel,
    context_frames,
    vocoder_frames,
)
from serve_app.models.speech_decoder.runner import SpeechDecoderRunner
from serve_app.models.speech_decoder.steps import DecoderSteps
from serve_app.models.start_times import start_times
from serve_app.types import TALKER_QUEUE, CodecFrames, Health, PcmChunk


class StreamingSpeechDecoder:
    """What `protocols.SlottedDecoder` asks for, around a runner.

    Args:
        runner: owned from here on; `close()` closes it.
    """

    def __init__(self, runner: SpeechDecoderRunner) -> None:
        self.runner = runner
        self._spec = runner.spec
        self._num_context = context_frames(runner.spec)
        self._num_vocoder = vocoder_frames(runner.spec)

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
        start_times.lap("decoder weights")
        steps = DecoderSteps(
            model,
            max_streams=config.max_streams,
            chunk_frames=config.chunk_frames,
            batch_sizes=config.batch_sizes,
            trials=_trials(config),
            exact=exact,
        )
        start_times.lap("decoder graphs")
        runner = SpeechDecoderRunner(steps, patience_s=config.patience_s if steps.is_cuda else 0.0)
        return cls(runner)

    async def pcm(
        self,
        frames: AsyncIterator[CodecFrames],
        done: np.ndarray | None = None,
        slot: int | None = None,
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield a chunk of samples per item of `frames`; any chunking gives the same samples.

        Nothing is asked of `frames` where no slot is free, and no slot is taken before they have
        begun: one that waits for its talker keeps none from those that run.

        Args:
            frames: the stream; closed when this generator ends, however it ends.
            done: int64 [T, Q], frames before the first of `frames` whose samples nobody wants. They
                prime the state.
            slot: of the runner, which the caller acquired and releases; None: one is acquired and
                released here. A first item that carries its samples was decoded in this slot by a
                `FirstAudioDecoder`.

        Yields:
            Chunks whose `first_sample` counts from frame 0 of the request, as `first_frame` of the
            items does.

        Raises:
            Overloaded: no stream slot is free. Before any sample.
            StageFailed: the device failed, or `frames` are not consecutive or not decodable.
        """
        try:
            if slot is None:
                self.runner.look()
            first = await anext(frames, None)
            if first is None:
                return
            mine = self.runner.acquire() if slot is None else slot
            try:
                async with aclosing(self._decoded(mine, first, frames, done)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            finally:
                if slot is None:
                    self.runner.release(mine)
        finally:
            if isinstance(frames, AsyncGenerator):
                await frames.aclose()

    async def _decoded(
        self,
        slot: int,
        first: CodecFrames,
        rest: AsyncIterator[CodecFrames],
        done: np.ndarray | None,
    ) -> AsyncGenerator[PcmChunk, None]:
        if done is not None and len(done):
            await self._prime(slot, done)
        item, expected = first, first.first_frame
        while item is not None:
            if item.first_frame != expected:
                raise StageFailed(f"frame {item.first_frame} follows frame {expected - 1}")
            expected = item.first_frame + len(item.codes)
            began_s = time.perf_counter()
            if item.samples is not None:
                self.runner.adopt(slot)
                samples = item.samples
            elif len(item.codes):
                final = item.finish_reason is not None
                samples = await self._decode(slot, item.codes, final=final)
            else:
                samples = np.empty(0, np.int16)
            timings: tuple[tuple[str, float], ...] = ()
            if item.elapsed_s is not None:
                decode_s = time.perf_counter() - began_s
                timings = (("talker", item.elapsed_s), ("decode", decode_s))
            if item.queued_s is not None:
                timings = ((TALKER_QUEUE, item.queued_s), *timings)
            yield PcmChunk(
                samples=samples,
                first_sample=item.first_frame * self._spec.samples_per_frame,
                codes=item.codes,
                finish_reason=item.finish_reason,
                timings=timings,
                tokens=item.tokens,
            )
            item = await anext(rest, None)

    def rehearse(self, chunk_frames: Sequence[int]) -> None:
        """Go through every size of load once; blocks, and not where an event loop runs.

        Args:
            chunk_frames: as configured.

        Raises:
            StageFailed: the device failed.
        """
        groups = self._spec.num_code_groups
        most = self.runner.steps.max_streams
        asyncio.run(rehearse_decoder(self.pcm, groups, chunk_frames, most))

    def stats(self) -> Mapping[str, float]:
        """Load: streams, max_streams, waiting jobs; counters of steps, frames, late kernels."""
        return {**self.runner.stats(), "late_kernels": late_kernels.count}

    def health(self) -> Health:
        return self.runner.health()

    def close(self) -> None:
        """Stop the thread and free the graphs; idempotent."""
        self.runner.close()

    async def _prime(self, slot: int, done: np.ndarray) -> None:
        """Put the state behind frames that were heard: int64 [T, Q], T >= 1."""
        # No later sample depends on what was before these, and by way of the transformer alone on
        # what was before the last of them. Whoever hears the stream waits for all of it.
        context = done[-self._num_context :]
        can_prime = self.runner.steps.can_prime
        primed = max(0, len(context) - self._num_vocoder) if can_prime else None
        await self._decode(slot, context, discard=True, primed=primed)

    async def _decode(
        self,
        slot: int,
        codes: np.ndarray,
        *,
        discard: bool = False,
        primed: int | None = None,
        final: bool = False,
    ) -> np.ndarray:
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.runner.enqueue(slot, DecodeJob(codes, future, discard, primed, final))
        return await future


def _trials(config: SpeechDecoderConfig) -> Trials | None:
    if not config.cudnn_benchmark:
        return None
    return Trials(config.cudnn_algorithms, config.cudnn_from_frames)
