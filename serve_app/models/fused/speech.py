"""All stages in one process: text in, audio out, with first frames decoded on the device."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
import torch

from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.kernel_cache.ahead import fill_ahead
from serve_app.models.late_kernels import late_kernels
from serve_app.models.rehearsal import rehearse
from serve_app.models.speech_decoder.first_audio import FirstAudioDecoder
from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder
from serve_app.models.start_times import start_times
from serve_app.models.talker.engine import VllmTalker
from serve_app.models.talker.vllm.core import import_engine
from serve_app.pipeline import synthesize
from serve_app.protocols import SlottedDecoder
from serve_app.types import CodecFrames, Health, PcmChunk, Prompt, SpeechRequest


def import_stages(device: torch.device) -> None:
    """Import what `FusedSpeech.load` needs for `device`, vLLM above all."""
    import_engine(device)
    if device.type == "cuda":
        import serve_app.models.code_predictor.fast
        import serve_app.models.sampling_kernel
        import serve_app.models.speech_decoder.network.kernels  # noqa: F401


@dataclass(frozen=True, slots=True)
class _InSlot:
    """Talker and decoder with one slot of the decoder, which both write to.

    prompt: of the request, where it is laid out already.
    """

    talker: VllmTalker
    decoder: SlottedDecoder
    slot: int
    prompt: Prompt | None

    def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        # A first frame that others come before is not decoded before them.
        slot = self.slot if request.context is None else None
        return self.talker.frames(request, done, slot, self.prompt)

    def pcm(
        self, frames: AsyncIterator[CodecFrames], done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        return self.decoder.pcm(frames, done, self.slot)


class FusedSpeech:
    """A talker and a speech decoder that share a process, and where there is one, a GPU."""

    def __init__(
        self,
        talker: VllmTalker,
        decoder: StreamingSpeechDecoder,
        first_audio: FirstAudioDecoder | None = None,
    ) -> None:
        self.talker = talker
        self.decoder = decoder
        self._first_audio = first_audio

    @classmethod
    def load(cls, checkpoint: Checkpoint, config: AppConfig, device: str) -> "FusedSpeech":
        """Load all stages; blocks until they can serve and nothing is left to be compiled.

        Not to be called where an event loop runs. `start_times` says afterwards what took how long.

        Raises:
            CheckpointError, StageUnavailable: the checkpoint or the device is unusable.
        """
        kernels_are_compiled = fill_ahead(device)
        import_stages(torch.device(device))
        start_times.lap("imports")
        kernels_are_compiled()
        start_times.lap("kernels")
        predictor = InProcessFrames.load(checkpoint, config.code_predictor, device)
        start_times.lap("code predictor")
        decoder = StreamingSpeechDecoder.load(checkpoint, config.speech_decoder, device)
        runner = decoder.runner
        first_audio = (
            FirstAudioDecoder(runner.steps, config.speech_decoder.first_batch_sizes)
            if runner.steps.is_cuda
            else None
        )
        start_times.lap("first audio graphs")
        chunk_frames = config.speech_decoder.chunk_frames
        talker = VllmTalker(checkpoint, config.talker, device, predictor, chunk_frames, first_audio)
        runner.capture_rest()
        speech = cls(talker, decoder, first_audio)
        if runner.steps.is_cuda:
            most = min(config.talker.max_num_seqs, config.speech_decoder.max_streams)
            positions = config.talker.max_num_batched_tokens
            asyncio.run(rehearse(speech.speak, checkpoint.spec, most, positions))
            talker.admission.forget()
            late_kernels.watch()
        start_times.lap("rehearsal")
        return speech

    async def speak(
        self,
        request: SpeechRequest,
        done: np.ndarray | None = None,
        prompt: Prompt | None = None,
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield the audio of `request`, without the part that `done` (int64 [T, Q]) stands for.

        `prompt` is the request's, where it was laid out elsewhere.

        Raises:
            Overloaded: no stream slot is free. Before any audio; also what `protocols.Talker` and
                `protocols.SpeechDecoder` raise.
        """
        slot = self.decoder.runner.acquire()
        stages = _InSlot(self.talker, self.decoder, slot, prompt)
        try:
            async with aclosing(synthesize(stages, stages, request, done)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self.decoder.runner.release(slot)

    def stats(self) -> dict[str, Mapping[str, float]]:
        return {"speech_decoder": self.decoder.stats(), "talker": self.talker.stats()}

    def health(self) -> Health:
        """Of the stage that is worse off."""
        stages = self.talker.health(), self.decoder.health()
        return max(stages, key=lambda health: (health.state != "works", health.busy_s))

    def close(self) -> None:
        self.talker.close()
        if self._first_audio is not None:
            self._first_audio.close()
        self.decoder.close()
