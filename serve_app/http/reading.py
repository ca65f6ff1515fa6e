"""The body of a request, with a limit."""

from fastapi import Request
from starlette.exceptions import HTTPException


async def read_body(http: Request, max_bytes: int) -> bytes:
    """The body, counted while it comes in: a length that a client states proves nothing.

    Raises:
        HTTPException: 413, as soon as it is too large.
    """
    parts: list[bytes] = []
    size = 0
    async for part in http.stream():
        size += len(part)
        if size > max_bytes:
            raise HTTPException(413, f"The request body is larger than {max_bytes} bytes.")
        parts.append(part)
    return b"".join(parts)
