"""Work that ends when the client leaves, and the streaming response made of it."""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection."""


class AudioResponse(StreamingResponse):
    """`first` and the rest of `pieces`; closes `pieces` whatever happens, before it returns."""

    def __init__(
        self,
        first: bytes,
        pieces: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        media_type: str,
    ) -> None:
        super().__init__(_prepend(first, pieces), headers=headers, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_gone(receive, self.stream_response(send))
        except (ClientGone, OSError):  # a server may report the loss on `send` instead
            return
        finally:
            await self._pieces.aclose()


async def _prepend(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for piece in rest:
        yield piece


async def until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`, cancelled as soon as the client leaves; the request body has been read.

    Raises:
        ClientGone: the client left first. `work` has unwound by then.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.create_task(work)
    watching = asyncio.create_task(gone())
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)
