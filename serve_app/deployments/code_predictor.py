"""The code predictor's deployment: a frame server, found and held through Serve sessions."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Final

import ray
from ray import serve

from serve_app.config import AppConfig

if TYPE_CHECKING:
    from serve_app.models.code_predictor.channel.contract import FrameEndpoint

_HEALTH_PERIOD_S: Final = 1.0

logger = logging.getLogger(__name__)


@serve.deployment
class CodePredictor:
    """Serves frames on threads and sockets of its own; Serve only introduces the talkers to it."""

    async def __init__(self, config: AppConfig, device: str) -> None:
        self._server = await asyncio.to_thread(_load, config, device)
        self._num_sessions = 0

    async def session(self, talker_id: str) -> AsyncGenerator["FrameEndpoint", None]:
        """Yield the address of this replica, then stay open for as long as `talker_id` uses it.

        The open request is what makes Serve count the talker as load, and wait for it when this
        replica goes.

        Raises:
            StageUnavailable, StageFailed: the frame server no longer works; the talker must look
                for another.
        """
        self._num_sessions += 1
        logger.info("talker %s opened a session", talker_id)
        try:
            yield self._server.endpoint
            while True:
                await asyncio.sleep(_HEALTH_PERIOD_S)
                self._server.check_health()
        finally:
            self._num_sessions -= 1
            logger.info("talker %s closed its session", talker_id)

    async def stats(self) -> dict[str, float]:
        return {**self._server.stats(), "sessions": self._num_sessions}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return await self.stats()

    async def check_health(self) -> None:
        self._server.check_health()

    def __del__(self) -> None:
        # Absent where the constructor failed.
        if hasattr(self, "_server"):
            self._server.close()


def _load(config: AppConfig, device: str):
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.code_predictor.channel.server import FrameServer

    # The address that other nodes reach this one by, for talkers there.
    os.environ.setdefault("RAY_NODE_IP_ADDRESS", ray.util.get_node_ip_address())
    checkpoint = open_checkpoint(checkpoint_folder(config))
    server = FrameServer.load(checkpoint, config.code_predictor, device)
    server.start()
    return server
