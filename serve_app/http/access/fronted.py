"""The layer behind an HAProxy that refuses: what the two tell each other (`launch/refusals.py`)."""

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


class Fronted:
    """Tells the proxy that nobody can be let in and what to close, and counts whom it has refused.

    Only behind a proxy that sets the one header itself and takes the other away: from a client,
    who could write anything, the number would be believed.
    """

    def __init__(self, app: ASGIApp, recorder: metrics.Recorder) -> None:
        self._app = app
        self._recorder = recorder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        refused = Headers(scope=scope).get(REFUSED, "")
        if refused.isascii() and refused.isdigit() and refused != "0":
            self._recorder.add(metrics.REFUSED_AT_PROXY, int(refused))

        async def telling(message: Message) -> None:
            if message["type"] == "http.response.start":
                if current().full:
                    message["headers"] = [*message["headers"], (FULL.encode(), b"1")]
                if Headers(raw=message["headers"]).get("connection") == "close":
                    message["headers"] = [*message["headers"], (CLOSE.encode(), b"1")]
            await send(message)

        await self._app(scope, receive, telling)
