"""The talker's deployment: the engine, tied to a code predictor by a session."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from functools import partial

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppConfig
from serve_app.deployments.calls import HandleResponse, ending_refused, telling
from serve_app.deployments.predictor_session import PredictorSession
from serve_app.deployments.ray_serve import replica, starts
from serve_app.deployments.recorded import StageStats, load_of, ray_recorder, recorded
from serve_app.protocols import require
from serve_app.types import CodecFrames, SpeechRequest


@serve.deployment(name="Talker")
class TalkerDeployment:
    """Turns requests into codec frames; completes each with the code predictor of its session."""

    @starts.saying_why
    async def __init__(self, config: AppConfig, device: str, predictor: DeploymentHandle) -> None:
        replica.begin()
        self._recorder = ray_recorder()
        self._capacity = config.talker.max_num_seqs
        self._stage_stats = StageStats(self._recorder, "talker")
        # A predictor on the same node may share the GPU, and with it the memory that holds the
        # hidden states.
        with suppress(RuntimeError):  # already in use elsewhere, with the options it then has
            predictor._init(_prefer_local_routing=True)
        session = predictor.options(stream=True).session.remote
        self._predictor = PredictorSession(partial(HandleResponse, session))
        # On a thread: while it loads, the engine asks for a predictor, which this loop finds.
        self._talker = await asyncio.to_thread(_load, config, device, self._predictor)

    @telling
    @ending_refused
    def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        """Yield the frames after `done` in items of growing size; raises what a `Talker` does."""
        stream = self._talker.frames(request, done)
        return recorded(stream, request, done, self._recorder, "talker")

    async def stats(self) -> dict[str, dict[str, float]]:
        """Load of this replica and of its code predictor."""
        return {
            "talker": dict(self._talker.stats()),
            "code_predictor": dict(self._predictor.load),
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {**load_of(self._talker.stats()), "capacity": float(self._capacity)}

    async def check_health(self) -> None:
        self._stage_stats.note(self._talker.stats())
        require(self._talker.health())

    def __del__(self) -> None:
        # The session first: the engine may be waiting for one on this very loop.
        if hasattr(self, "_predictor"):
            self._predictor.close()
        if hasattr(self, "_talker"):
            self._talker.close()


def _load(config: AppConfig, device: str, predictor: PredictorSession):
    from serve_app.models.start_times import start_times

    start_times.begin()
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.split import ready_talker

    checkpoint = open_checkpoint(checkpoint_folder(config))
    talker = ready_talker(checkpoint, config, device, predictor)
    starts.say(start_times.parts)
    return talker
