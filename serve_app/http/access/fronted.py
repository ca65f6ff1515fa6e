"""The layer behind an HAProxy that refuses: what the two tell each other (`launch/refusals.py`)."""

import logging
import time
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import metrics
from serve_app.http.observe.record import current

# Of a response: whoever else comes now would be refused as well.
FULL: Final = "x-tts-full"
# Of a response: its connection is to be closed. A proxy keeps its client's whatever is said to it.
CLOSE: Final = "x-tts-close"
# Of a request: how many were refused since the last one that was let through.
REFUSED: Final = "x-tts-refused"
_LOG_EVERY_S: Final = 5.0

logger = logging.getLogger(__name__)


class Fronted:
    """Tells the proxy that nobody can be let in and what to close, and counts whom it has refused.

    Only behind a proxy that sets the one header itself and takes the other away: from a client,
    who could write anything, the number would be believed.
    """

    def __init__(
        self,
        app: ASGIApp,
        recorder: metrics.Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._recorder = recorder
        self._clock = clock
        self._refused = 0
        self._logged_s = float("-inf")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = Headers(scope=scope).get(REFUSED, "")
        if refused.isascii() and refused.isdigit() and refused != "0":
            self._note_refused(int(refused))

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                if current().full:
                    message["headers"] = [*message["headers"], (FULL.encode(), b"1")]
                if Headers(raw=message["headers"]).get("connection") == "close":
                    message["headers"] = [*message["headers"], (CLOSE.encode(), b"1")]
            await send(message)

        await self._app(scope, receive, telling)

    def _note_refused(self, count: int) -> None:
        """One line for all that were refused of late."""
        self._recorder.add(metrics.REFUSED_AT_PROXY, count)
        self._refused += count
        now_s = self._clock()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            logger.warning("HAProxy refused %d requests by itself", self._refused)
            self._refused, self._logged_s = 0, now_s
