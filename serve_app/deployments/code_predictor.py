"""The code predictor's deployment: a frame server, found and held through Serve sessions."""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import ray
from ray import serve

from serve_app.config import AppConfig
from serve_app.deployments.ray_serve import replica, starts
from serve_app.deployments.recorded import StageStats, ray_recorder, recorded_session
from serve_app.protocols import require

if TYPE_CHECKING:
    from serve_app.models.code_predictor.channel.contract import FrameEndpoint

_LOAD_PERIOD_S: Final = 1.0
# A replica that is to go keeps its talkers for so long, and a new one waits so long for some.
_SESSION_S: Final = 60.0

logger = logging.getLogger(__name__)


@serve.deployment(name="CodePredictor")
class CodePredictorDeployment:
    """Serves frames on threads and sockets of its own; Serve only introduces the talkers to it."""

    @starts.saying_why
    async def __init__(self, config: AppConfig, device: str) -> None:
        replica.begin()
        self._recorder = ray_recorder()
        self._stage_stats = StageStats(self._recorder, "code_predictor")
        self._num_sessions = 0
        self._open = ExitStack()
        # The address that other nodes reach this one by, for talkers there.
        host = ray.util.get_node_ip_address()
        server = await asyncio.to_thread(_load, config, device, host)
        self._server = self._open.enter_context(server.serve())

    async def session(
        self, talker_id: str, node: str
    ) -> AsyncGenerator["FrameEndpoint | dict[str, float]", None]:
        """Yield the address of this replica, then its load, now and every second, for a while.

        The open request is what makes Serve count the talker as load. It ends so that the talker
        asks anew: Serve then sends it to where there is least to do, and never to a replica that is
        to go.

        Args:
            talker_id: for the log.
            node: `node_identity` of the talker.

        Raises:
            StageUnavailable, StageFailed: the frame server no longer works; the talker must look
                for another.
        """
        self._num_sessions += 1
        logger.info("talker %s opened a session", talker_id)
        # Not all talkers at once.
        num_periods = round(_SESSION_S * random.uniform(0.8, 1.2) / _LOAD_PERIOD_S)
        try:
            with recorded_session(self._recorder):
                yield self._server.endpoint(node)
                for _ in range(num_periods):
                    require(self._server.health())
                    yield await self.stats()
                    await asyncio.sleep(_LOAD_PERIOD_S)
        finally:
            self._num_sessions -= 1
            logger.info("talker %s closed its session", talker_id)

    async def stats(self) -> dict[str, float]:
        return {**self._server.stats(), "sessions": self._num_sessions}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return await self.stats()

    async def check_health(self) -> None:
        self._stage_stats.note(self._server.stats())
        require(self._server.health())

    def __del__(self) -> None:
        # Absent where the constructor failed.
        if hasattr(self, "_open"):
            self._open.close()


def _load(config: AppConfig, device: str, host: str):
    from serve_app.models.start_times import start_times

    start_times.begin()
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.split import ready_predictor

    checkpoint = open_checkpoint(checkpoint_folder(config))
    server = ready_predictor(checkpoint, config, device, host)
    starts.say(start_times.parts)
    return server
