"""The session that ties a talker to a code predictor."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from serve_app.models.code_predictor.channel.contract import FrameEndpoint

# Long enough for a replica to start and capture its graphs; the frame client tries several times.
_CONNECT_TIMEOUT_S: Final = 60.0
# Between attempts to open the next session, while frames still go to the predictor of the last.
_PAUSE_S: Final = 1.0

logger = logging.getLogger(__name__)


class SessionStream(Protocol):
    """What a call of `CodePredictor.session` gives: the endpoint first, then loads."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    async def __anext__(self) -> Any: ...

    def cancel(self) -> None: ...


class PredictorSession:
    """The one open session of a talker; what its engine knows as `FrameSessions`.

    A predictor ends a session after a while, be it that it is to go or that another one has less to
    do: the next one is opened wherever Serve finds best, while frames go on where they went.

    `connect` blocks and belongs to the engine's thread, `is_over` to any; everything else belongs
    to the event loop that built this.

    Args:
        open_session: calls `CodePredictor.session` with the talker's id and its node.
    """

    def __init__(self, open_session: Callable[[str, str], Any]) -> None:
        self.load: Mapping[str, float] = {}
        self._open_session = open_session
        self._loop = asyncio.get_running_loop()
        self._lock = asyncio.Lock()
        self._talker_id = uuid.uuid4().hex
        self._stream: SessionStream | None = None
        self._holder: asyncio.Task[None] | None = None
        self._next: FrameEndpoint | None = None

    @property
    def is_over(self) -> bool:
        """Whether another session is open than the one whose endpoint `connect` returned last."""
        return self._next is not None

    def connect(self, node: str) -> "FrameEndpoint":
        """The endpoint of the next session, which is opened here unless it is open already.

        Args:
            node: which the talker is on.

        Raises:
            OSError: no predictor could be reached in time; worth another attempt.
        """
        opening = asyncio.run_coroutine_threadsafe(self._take(node), self._loop)
        try:
            return opening.result(_CONNECT_TIMEOUT_S)
        except TimeoutError:
            opening.cancel()
            raise
        except Exception as error:
            # Ray and gRPC have many words for a replica that went away while it was asked.
            raise ConnectionError(f"no code predictor could be reached: {error!r}") from error

    def close(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def _take(self, node: str) -> "FrameEndpoint":
        async with self._lock:
            if self._next is None:
                self._next = await self._open(node)
            endpoint, self._next = self._next, None
            return endpoint

    async def _open(self, node: str) -> "FrameEndpoint":
        self.close()
        stream = self._stream = self._open_session(self._talker_id, node)
        endpoint = await anext(stream)
        logger.info("talker %s uses the code predictor at %s", self._talker_id, endpoint)
        self._holder = self._loop.create_task(self._hold(stream, node))
        return endpoint

    async def _hold(self, stream: SessionStream, node: str) -> None:
        """Follow a session to its end, and open the one after it."""
        try:
            async for load in stream:
                self.load = load
        except Exception as error:
            # If the predictor is gone, the engine knows by its socket and asks for another.
            logger.info("talker %s lost its session: %r", self._talker_id, error)
        while self._stream is stream:
            async with self._lock:
                if self._stream is not stream:
                    return
                try:
                    self._next = await self._open(node)
                    return
                except Exception as error:
                    logger.warning("no next code predictor yet: %r", error)
                    self._stream = stream
            await asyncio.sleep(_PAUSE_S)
