"""The body of a request, with a limit."""

from fastapi import Request
from starlette.exceptions import HTTPException


async def read_body(http: Request, max_bytes: int) -> bytes:
    """The body, counted while it comes in: a length that a client states proves nothing.

    Raises:
        HTTPException: 413, as soon as it is too large, and unread where it says so itself; 415 for
            what is compressed or a form, which nothing here reads.
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
    async for part in http.stream():
        size += len(part)
        if size > max_bytes:
            raise too_large(max_bytes)
        parts.append(part)
    return b"".join(parts)


def too_large(max_bytes: int) -> HTTPException:
    return HTTPException(413, f"The request body is larger than {max_bytes} bytes.")
