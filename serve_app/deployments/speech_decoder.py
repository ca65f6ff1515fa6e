"""The speech decoder's deployment: pulls codec frames from the talker, yields samples."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

import numpy as np
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.config import AppConfig
from serve_app.deployments.calls import streaming
from serve_app.errors import SpeechError
from serve_app.pipeline import timed
from serve_app.types import CodecFrames, PcmChunk, SpeechRequest


@serve.deployment
class SpeechDecoder:
    """The stage that the ingress talks to in placement `split`."""

    async def __init__(self, config: AppConfig, device: str, talker: DeploymentHandle) -> None:
        self._talker = streaming(talker)
        self._talker_stats = talker.stats
        self._decoder = await asyncio.to_thread(_load, config, device)

    async def speak(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield the audio after `done` (int64 [T, Q]); raises what talker and decoder raise."""
        upstream = cast(
            DeploymentResponseGenerator[CodecFrames],
            self._talker.frames.remote(request, done),
        )
        try:
            async with (
                aclosing(_frames(upstream)) as frames,
                aclosing(timed("stages", self._decoder.pcm(frames, done))) as chunks,
            ):
                async for chunk in chunks:
                    yield chunk
        finally:
            upstream.cancel()

    async def stats(self) -> dict[str, dict[str, float]]:
        """Load of this replica, and of one replica of each stage behind it."""
        upstream = await self._talker_stats.remote()
        return {"speech_decoder": dict(self._decoder.stats()), **upstream}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return dict(self._decoder.stats())

    async def check_health(self) -> None:
        self._decoder.check_health()

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._decoder.close()


async def _frames(
    upstream: DeploymentResponseGenerator[CodecFrames],
) -> AsyncGenerator[CodecFrames, None]:
    """Iterate a remote stream; what was raised there on purpose is raised here as it was."""
    try:
        async for frames in upstream:
            yield frames
    except RayTaskError as error:
        # Ray raises a class made on the spot, which another replica may fail to unpickle.
        if isinstance(error.cause, SpeechError):
            raise error.cause from None
        raise


def _load(config: AppConfig, device: str):
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder

    checkpoint = open_checkpoint(checkpoint_folder(config))
    decoder = StreamingSpeechDecoder.load(checkpoint, config.speech_decoder, device)
    decoder.runner.capture_rest()
    return decoder
