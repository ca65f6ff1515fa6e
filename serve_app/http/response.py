"""Work that ends when the client leaves, and the streaming response made of it."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.pipeline import Interrupted, Waiting

T = TypeVar("T")

# The status of what its client did not wait for: nginx's number. Nobody receives it, it is for log
# and metrics.
CLIENT_GONE: Final = 499


class ClientGone(Exception):
    """The client closed the connection."""


class ReaderStalled(Exception):
    """The client is there and takes nothing."""


class AudioResponse(StreamingResponse):
    """`first` and the rest of `pieces`; closes `pieces` whatever happens, before it returns.

    A client that takes nothing for `stall_s` seconds ends it: `pieces` is told by `ReaderStalled`.
    """

    def __init__(
        self,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        media_type: str,
        stall_s: float,
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._first = first
        self._pieces = pieces
        self._stall_s = stall_s
        self._sending = Waiting()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self.stream_response(send))
        except ReaderStalled as error:
            await self._pieces.athrow(error)
        except (ClientGone, OSError):  # a server may report the loss on `send` instead
            return
        finally:
            self._sending.close()
            await self._pieces.aclose()

    async def stream_response(self, send: Send) -> None:
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        await self._send(send, self._first)
        async for piece in self._pieces:
            await self._send(send, piece)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        message = {"type": "http.response.body", "body": body, "more_body": more}
        try:
            await self._sending.wait(send(message), self._stall_s)
        except Interrupted as error:
            raise ReaderStalled(f"nothing was read for {self._stall_s:g} s") from error


async def until_gone(receive: Receive, work: Awaitable[T]) -> T:
    """Run `work`, cancelled as soon as the client leaves; the request body has been read.

    Raises:
        ClientGone: the client left first. `work` has unwound by then.
    """
    waiting = Waiting()

    async def watch() -> None:
        with suppress(Exception):  # a server that cannot tell has lost it as well
            while (await receive())["type"] != "http.disconnect":
                pass
        waiting.interrupt()

    # The work stays in this task: one for it and one for the client cost four times as much.
    watching = asyncio.create_task(watch())
    try:
        return await waiting.wait(work)
    except Interrupted as error:
        raise ClientGone from error
    finally:
        watching.cancel()
        await asyncio.wait({watching})
