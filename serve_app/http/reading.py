"""The body of a request, with a limit, and a limit for all large ones together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from fastapi import Request
from starlette.exceptions import HTTPException

from serve_app.errors import Overloaded

# Up to here a body counts for nothing; a recording is larger.
_SMALL_BYTES: Final = 1 << 20


class Room:
    """How much of large bodies this process takes in at a time."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._taken = 0

    @contextmanager
    def growing(self) -> Iterator[Callable[[int], None]]:
        """Calls tell how large a body is by now, in bytes, as long as it comes in.

        Raises:
            Overloaded: by such a call, where there is no room for it.
        """
        held = 0

        def grow(size: int) -> None:
            nonlocal held
            more = max(0, size - _SMALL_BYTES) - held
            if more <= 0:
                return
            if self._taken + more > self._max_bytes:
                raise Overloaded("Too many large requests are coming in at the moment.", 2.0)
            self._taken += more
            held += more

        try:
            yield grow
        finally:
            self._taken -= held


ROOM: Final = Room(128 << 20)


async def read_body(http: Request, max_bytes: int) -> bytes:
    """The body, counted while it comes in: a length that a client states proves nothing.

    Raises:
        HTTPException: 413, as soon as it is too large, and unread where it says so itself; 415 for
            what is compressed or a form, which nothing here reads.
        Overloaded: there is no room for a large one.
    """
    encoding = http.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise HTTPException(415, f"The content encoding '{encoding}' is not supported.")
    if http.headers.get("content-type", "").lower().startswith("multipart/"):
        raise HTTPException(415, "The request body must be JSON, not a form.")
    stated = http.headers.get("content-length", "")
    if stated.isascii() and stated.isdigit() and int(stated[:20]) > max_bytes:
        raise too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    with ROOM.growing() as grow:
        async for part in http.stream():
            size += len(part)
            if size > max_bytes:
                raise too_large(max_bytes)
            grow(size)
            parts.append(part)
    return b"".join(parts)


def too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"The request body is larger than {max_bytes} bytes.")
