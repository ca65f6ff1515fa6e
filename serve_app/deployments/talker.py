"""The talker's deployment: the engine, and the session that ties it to a code predictor."""

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from serve_app.config import AppConfig
from serve_app.types import CodecFrames, SpeechRequest

if TYPE_CHECKING:
    from serve_app.models.code_predictor.channel.contract import FrameEndpoint

# Long enough for a replica to start and capture its graphs; the frame client tries several times.
_CONNECT_TIMEOUT_S: Final = 60.0

logger = logging.getLogger(__name__)


@serve.deployment
class Talker:
    """Turns requests into codec frames; completes each with the code predictor of its session."""

    async def __init__(self, config: AppConfig, device: str, predictor: DeploymentHandle) -> None:
        self._predictor = PredictorSession(predictor)
        # On a thread: while it loads, the engine may ask for a predictor, which this loop finds.
        self._talker = await asyncio.to_thread(_load, config, device, self._predictor)

    async def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        """Yield the frames after `done` in items of growing size; raises as `protocols.Talker`."""
        async with aclosing(self._talker.frames(request, done)) as frames:
            async for item in frames:
                yield item

    async def stats(self) -> dict[str, dict[str, float]]:
        """Load of this replica and of a replica of the code predictor."""
        return {
            "talker": dict(self._talker.stats()),
            "code_predictor": await self._predictor.stats(),
        }

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return dict(self._talker.stats())

    async def check_health(self) -> None:
        self._talker.check_health()

    def __del__(self) -> None:
        # The session first: the engine may be waiting for one on this very loop.
        if hasattr(self, "_predictor"):
            self._predictor.close()
        if hasattr(self, "_talker"):
            self._talker.close()


class PredictorSession:
    """The one open session of this talker with a code predictor.

    `connect` blocks and belongs to the engine's thread; everything else belongs to the event loop
    that built this.
    """

    def __init__(self, handle: DeploymentHandle) -> None:
        # A predictor on the same node may share the GPU, and with it the memory that holds the
        # hidden states.
        with suppress(RuntimeError):  # already in use elsewhere, with the options it then has
            handle._init(_prefer_local_routing=True)
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._talker_id = uuid.uuid4().hex
        self._stream: DeploymentResponseGenerator[Any] | None = None

    def connect(self) -> "FrameEndpoint":
        """Open a session with a live replica, giving up the one before, and return where it
        listens.

        Raises:
            OSError: none could be reached in time; worth another attempt.
        """
        opening = asyncio.run_coroutine_threadsafe(self._open(), self._loop)
        try:
            return opening.result(_CONNECT_TIMEOUT_S)
        except TimeoutError:
            opening.cancel()
            raise
        except Exception as error:
            # Ray and gRPC have many words for a replica that went away while it was asked.
            raise ConnectionError(f"no code predictor could be reached: {error!r}") from error

    async def stats(self) -> dict[str, float]:
        return dict(await self._handle.stats.remote())

    def close(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    async def _open(self) -> "FrameEndpoint":
        self.close()
        stream = cast(
            "DeploymentResponseGenerator[FrameEndpoint]",
            self._handle.options(stream=True).session.remote(self._talker_id),
        )
        self._stream = stream
        endpoint = await anext(stream)
        logger.info("talker %s uses the code predictor at %s", self._talker_id, endpoint)
        return endpoint


def _load(config: AppConfig, device: str, predictor: PredictorSession):
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.code_predictor.channel.client import RemoteFrames
    from serve_app.models.talker.engine import VllmTalker

    checkpoint = open_checkpoint(checkpoint_folder(config))
    frames = RemoteFrames(
        predictor.connect,
        num_code_groups=checkpoint.spec.talker.num_code_groups,
        max_rows=config.talker.max_num_seqs,
        channel=config.code_predictor.channel,
    )
    chunk_frames = config.speech_decoder.chunk_frames
    return VllmTalker(checkpoint, config.talker, device, frames, chunk_frames)
