"""The layer that bounds what a client sends: bytes of a body, seconds it takes, bytes of a message.

Routes have limits of their own below these. What is stated too large is refused unread.
"""

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.config import AccessConfig
from serve_app.http.errors import error_response

_TOO_BIG: Final = 1009


class Sizes:
    def __init__(self, app: ASGIApp, config: AccessConfig) -> None:
        self._app = app
        self._config = config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, self._messages(receive, send), send)
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif self._stated(scope) > self._config.max_body_bytes:
            await error_response(self._too_large())(scope, receive, send)
        else:
            await self._app(scope, self._body(receive), send)

    def _stated(self, scope: Scope) -> int:
        length = Headers(scope=scope).get("content-length", "")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0

    def _too_large(self) -> HTTPException:
        limit = self._config.max_body_bytes
        return HTTPException(413, f"The request body is larger than {limit} bytes.")

    def _body(self, receive: Receive) -> Receive:
        """`receive` that raises HTTPException where the body is too large or takes too long."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + self._config.body_timeout_s
        size, whole = 0, False

        async def limited() -> Message:
            nonlocal size, whole
            if whole:  # what else comes is the end of the connection, for which one waits
                return await receive()
            timer = asyncio.timeout_at(deadline_s)
            try:
                async with timer:
                    message = await receive()
            except TimeoutError as error:
                if not timer.expired():
                    raise
                wait_s = self._config.body_timeout_s
                raise HTTPException(
                    408,
                    f"The request body did not come within {wait_s:g} s.",
                    {"Connection": "close"},
                ) from error
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self._config.max_body_bytes:
                raise self._too_large()
            return message

        return limited

    def _messages(self, receive: Receive, send: Send) -> Receive:
        """`receive` that ends a WebSocket at a message that is too large."""
        closed = False

        async def limited() -> Message:
            nonlocal closed
            message: Message = {} if closed else await receive()
            if closed or _num_bytes(message) > self._config.max_frame_bytes:
                if not closed:
                    closed = True
                    await send({"type": "websocket.close", "code": _TOO_BIG})
                return {"type": "websocket.disconnect", "code": _TOO_BIG}
            return message

        return limited


def _num_bytes(message: Message) -> int:
    """Of what came in it, as it was on the wire."""
    text: str = message.get("text") or ""
    if text.isascii():
        return len(text) or len(message.get("bytes") or b"")
    return len(text.encode("utf-8", "surrogatepass"))
