"""What a client sends of a voice: a form with a file, as all SDKs do, or JSON with base64."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.types import Message, Receive

from serve_app.errors import InvalidRequest
from serve_app.http.reading import ROOM, read_body, too_large
from serve_app.http.speech.body import read_json

_MAX_FIELDS: Final = 64
_MAX_FILES: Final = 2
# Of all that is in a request besides its file.
OTHER_BYTES: Final = 1 << 20
_TRUE: Final = ("true", "1", "yes", "on")
_FALSE: Final = ("false", "0", "no", "off", "")


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a request, and its files by the name of their field."""

    fields: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)

    def text(self, *names: str) -> str | None:
        """The first of several fields that is there.

        Raises:
            InvalidRequest: it is no text.
        """
        for name in names:
            value = self.fields.get(name)
            if value is not None:
                if not isinstance(value, str):
                    raise InvalidRequest(f"'{name}' must be a string.", name)
                return value
        return None

    def flag(self, name: str) -> bool | None:
        value = self.fields.get(name)
        if value is None or isinstance(value, bool):
            return value
        text = str(value).strip().lower()
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        raise InvalidRequest(f"'{name}' must be true or false.", name)

    def file(self, *names: str) -> tuple[str, bytes] | None:
        """The first of several files that is there, and the name of its field."""
        return next(((name, self.files[name]) for name in names if name in self.files), None)


async def read_form(http: Request, max_file_bytes: int) -> Form:
    """A form of either kind, or JSON.

    Raises:
        HTTPException: 413, as soon as it is too large; 400 for what is no form.
        InvalidRequest: a file is too large, or it is no JSON.
        Overloaded: there is no room for a large one.
    """
    max_bytes = max_file_bytes + OTHER_BYTES
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raw = await read_body(http, max_bytes * 4 // 3)
        return Form(await asyncio.to_thread(read_json, raw) if raw.strip() else {})
    if _stated(http) > max_bytes:
        raise too_large(max_bytes)
    with ROOM.growing() as grow:
        return await _parsed(Request(http.scope, _counted(http, max_bytes, grow)), max_file_bytes)


def _counted(http: Request, max_bytes: int, grow: Callable[[int], None]) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await http.receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise too_large(max_bytes)
        grow(size)
        return message

    return counted


async def _parsed(http: Request, max_file_bytes: int) -> Form:
    fields: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    form = await http.form(max_files=_MAX_FILES, max_fields=_MAX_FIELDS, max_part_size=OTHER_BYTES)
    try:
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                fields[name] = value
                continue
            data = await value.read()
            if len(data) > max_file_bytes:
                megabytes = max_file_bytes / (1 << 20)
                raise InvalidRequest(
                    f"'{name}' is larger than {megabytes:g} MiB.", name, "payload_too_large"
                )
            files[name] = data
    finally:
        await form.close()
    return Form(fields, files)


def _stated(http: Request) -> int:
    length = http.headers.get("content-length", "")
    return int(length[:20]) if length.isascii() and length.isdigit() else 0
