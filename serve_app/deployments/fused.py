"""Talker, code predictor and speech decoder in one process: placement `fused`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
from ray import serve

from serve_app.config import AppConfig
from serve_app.pipeline import synthesize
from serve_app.protocols import SpeechDecoder, Talker
from serve_app.types import PcmChunk, SpeechRequest


@serve.deployment
class Fused:
    """All stages without a process boundary; to the ingress the same as SpeechDecoder."""

    async def __init__(self, config: AppConfig, device: str) -> None:
        self._chunk_frames = config.speech_decoder.chunk_frames
        self._talker, self._decoder = await asyncio.to_thread(_load, config, device)

    async def speak(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield the audio after `done` (int64 [T, Q]); raises what talker and decoder raise."""
        stream = synthesize(self._talker, self._decoder, request, self._chunk_frames, done)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                yield chunk

    async def stats(self) -> dict[str, dict[str, float]]:
        return {
            "speech_decoder": dict(self._decoder.stats()),
            "talker": dict(self._talker.stats()),
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {**self._decoder.stats(), **self._talker.stats()}

    async def check_health(self) -> None:
        self._talker.check_health()
        self._decoder.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_talker"):
            self._talker.close()
            self._decoder.close()


def _load(config: AppConfig, device: str) -> tuple[Talker, SpeechDecoder]:
    from serve_app.deployments.weights import checkpoint_folder
    from serve_app.models.checkpoint import open_checkpoint
    from serve_app.models.frame_channel import InProcessFrames
    from serve_app.models.speech_decoder import StreamingSpeechDecoder
    from serve_app.models.talker.engine import VllmTalker

    checkpoint = open_checkpoint(checkpoint_folder(config))
    predictor = InProcessFrames.load(checkpoint, config.code_predictor, device)
    talker = VllmTalker.load(checkpoint, config.talker, device, predictor)
    return talker, StreamingSpeechDecoder.load(checkpoint, config.speech_decoder, device)
