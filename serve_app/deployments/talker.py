"""The talker's deployment: the engine, tied to a code predictor by a session."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppConfig
from serve_app.deployments.predictor_session import PredictorSession
from serve_app.deployments.recorded import ray_recorder, recorded
from serve_app.protocols import require
from serve_app.types import CodecFrames, SpeechRequest


@serve.deployment
class Talker:
    """Turns requests into codec frames; completes each with the code predictor of its session."""

    async def __init__(self, config: AppConfig, device: str, predictor: DeploymentHandle) -> None:
        self._recorder = ray_recorder()
        # A predictor on the same node may share the GPU, and with it the memory that holds the
        # hidden states.
        with suppress(RuntimeError):  # already in use elsewhere, with the options it then has
            predictor._init(_prefer_local_routing=True)
        self._predictor = PredictorSession(predictor.options(stream=True).session.remote)
        # On a thread: while it loads, the engine may ask for a predictor, which this loop finds.
        self._talker = await asyncio.to_thread(_load, config, device, self._predictor)

    async def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        """Yield the frames after `done` in items of growing size; raises as `protocols.Talker`."""
        stream = self._talker.frames(request, done)
        async with aclosing(recorded(stream, request, done, self._recorder, "talker")) as frames:
            async for item in frames:
                yield item

    async def stats(self) -> dict[str, dict[str, float]]:
        """Load of this replica and of its code predictor."""
        return {
            "talker": dict(self._talker.stats()),
            "code_predictor": dict(self._predictor.load),
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return dict(self._talker.stats())

    async def check_health(self) -> None:
        require(self._talker.health())

    def __del__(self) -> None:
        # The session first: the engine may be waiting for one on this very loop.
        if hasattr(self, "_predictor"):
            self._predictor.close()
        if hasattr(self, "_talker"):
            self._talker.close()


def _load(config: AppConfig, device: str, predictor: PredictorSession):
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.code_predictor.channel.client import RemoteFrames
    from serve_app.models.talker.engine import VllmTalker

    checkpoint = open_checkpoint(checkpoint_folder(config))
    frames = RemoteFrames(
        predictor,
        num_code_groups=checkpoint.spec.talker.num_code_groups,
        max_rows=config.talker.max_num_seqs,
        channel=config.code_predictor.channel,
    )
    chunk_frames = config.speech_decoder.chunk_frames
    return VllmTalker(checkpoint, config.talker, device, frames, chunk_frames)
