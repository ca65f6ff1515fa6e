"""A WebSocket as sessions see it: JSON objects come in, JSON objects and bytes go out, with limits.

A session that breaks off says why before it closes; what it makes is closed whatever happens.
"""

import asyncio
import json
import logging
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, Final

from fastapi import WebSocket, WebSocketDisconnect

from serve_app.errors import InvalidRequest, Overloaded, ServerDraining
from serve_app.http.access.answers import refuse
from serve_app.http.draining.drain import Drain
from serve_app.http.errors import error_response
from serve_app.http.live.turns import Turns
from serve_app.http.observe.record import current
from serve_app.http.response import ClientGone, ReaderStalled

# Close codes of RFC 6455.
NORMAL: Final = 1000
GOING_AWAY: Final = 1001
POLICY: Final = 1008
TOO_BIG: Final = 1009
INTERNAL: Final = 1011
# Registered later: whoever connects again is served.
RESTART: Final = 1012
# How long a session that is cut off has to say so of what it speaks.
_LAST_WORDS_S: Final = 0.5
# So much JSON is read in less than a millisecond or two.
_QUICK_CHARS: Final = 32 << 10

logger = logging.getLogger(__name__)


async def let_in(socket: WebSocket, look: Callable[[int], None]) -> bool:
    """Whether a connection may become a session; else it is answered as a request would be, before
    it is a WebSocket.
    """
    try:
        look(current().priority)
    except Overloaded as error:
        await refuse(error_response(error), socket.scope, socket.receive, socket.send)
        return False
    return True


class SessionEnd(Exception):
    """Ends a session from within, after what the client is told is sent."""

    def __init__(self, code: int, error: Exception | None = None) -> None:
        super().__init__(code, error)
        self.code = code
        self.error = error


class Connection:
    """One accepted WebSocket.

    Args:
        stall_s: how long a client may take nothing.
    """

    def __init__(self, socket: WebSocket, stall_s: float) -> None:
        self._socket = socket
        self._stall_s = stall_s

    async def receive(self, max_chars: int) -> dict[str, Any]:
        """The next message.

        Raises:
            InvalidRequest: it is not a JSON object.
            SessionEnd: it is longer than `max_chars`.
            ClientGone: the client has closed the connection.
        """
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise ClientGone
        text: str | None = message.get("text")
        if len(message.get("bytes") or text or "") > max_chars:
            error = InvalidRequest(
                f"A message has at most {max_chars} characters.", None, "too_big"
            )
            raise SessionEnd(TOO_BIG, error)
        if text is None:
            raise InvalidRequest("A message must be JSON in a text frame.")
        try:
            is_long = len(text) > _QUICK_CHARS
            content = await asyncio.to_thread(_read, text) if is_long else _read(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequest("A message must be valid JSON.") from error
        if not isinstance(content, dict):
            raise InvalidRequest("A message must be a JSON object.")
        return content

    async def send(self, content: Mapping[str, Any] | bytes) -> None:
        """Send a message; waits while the client reads slowly.

        Raises:
            ReaderStalled: it has read nothing for too long.
            ClientGone: it has closed the connection.
        """
        timer = asyncio.timeout(self._stall_s)
        try:
            async with timer:
                if isinstance(content, bytes):
                    await self._socket.send_bytes(content)
                else:
                    await self._socket.send_text(json.dumps(content, separators=(",", ":")))
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise ReaderStalled(f"nothing was read for {self._stall_s:g} s") from error
        except WebSocketDisconnect as error:
            raise ClientGone from error

    async def close(self, code: int) -> None:
        async with asyncio.timeout(self._stall_s):
            await self._socket.close(code)


async def converse(
    socket: WebSocket, connection: Connection, *works: Coroutine[Any, Any, None]
) -> None:
    """Run the parts of a session until one of them ends, then end the others and close.

    Raises nothing but cancellation: whatever ends a session, the server around it lives on.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        code = await _until_end(connection, tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if code is not None:
        try:
            await connection.close(code)
        except (TimeoutError, RuntimeError, WebSocketDisconnect):
            logger.info("%s: it did not wait for the end", socket.url.path)


async def leave(turns: Turns, drain: Drain) -> None:
    """Part of a session: end it between two turns once its ingress is to end, and in the middle of
    one where that does not wait for longer.

    Raises:
        SessionEnd: always.
    """
    await drain.ending()
    try:
        await drain.until_cut(turns.idle)
    except ServerDraining as error:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await turns.idle()
                raise SessionEnd(_code(drain)) from error
        raise SessionEnd(_code(drain), error) from error
    raise SessionEnd(_code(drain))


def _code(drain: Drain) -> int:
    return GOING_AWAY if drain.has_begun else RESTART


async def _until_end(connection: Connection, tasks: list[asyncio.Task[None]]) -> int | None:
    """The code to close with, or None where nobody is left to be told."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    except (ClientGone, ReaderStalled):
        return None
    except SessionEnd as end:
        return await _told(connection, end.error, end.code)
    except Exception as error:
        logger.exception("a session failed")
        return await _told(connection, error, INTERNAL)
    return NORMAL


async def _told(connection: Connection, error: Exception | None, code: int) -> int | None:
    try:
        if error is not None:
            await connection.send({"type": "error", **error_object(error)})
    except (ClientGone, ReaderStalled):
        return None
    return code


def error_object(error: Exception) -> dict[str, Any]:
    """OpenAI's `error`, and its message beside it, where vllm-omni's clients look for it."""
    content = json.loads(bytes(error_response(error).body))
    return {"message": content["error"]["message"], **content}


def _read(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse, parse_float=_finite)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is out of range")
    return value


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
