"""`POST /v1/audio/speech/batch`: many texts, one answer, each with its audio or its error.

The answer is JSON, written while the items are made: no more of them are held than are made at a
time, and what a text does wrong is an error of its item alone.
"""

import asyncio
import base64
import json
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.requests import ClientDisconnect

from serve_app import metrics
from serve_app.config import IngressConfig
from serve_app.errors import InvalidRequest, Overloaded, SpeechError
from serve_app.http.background import Background
from serve_app.http.document import JSON, operation
from serve_app.http.errors import error_response
from serve_app.http.reading import read_body
from serve_app.http.response import CLIENT_GONE, AudioResponse
from serve_app.http.speech.accept import Checked, Job, Speech
from serve_app.http.speech.body import read_json
from serve_app.http.speech.document import FIELDS
from serve_app.http.speech.sse import ending_of
from serve_app.http.speech.writer import AudioWriter

# White space between the items keeps proxies from closing a connection on which nothing moves.
_ALIVE_S: Final = 10.0
_PIECE_BYTES: Final = 1 << 20

_DOCUMENT: Final = operation(
    {
        **FIELDS,
        "required": ["items"],
        "properties": {
            "items": {"type": "array", "minItems": 1, "items": FIELDS},
            **FIELDS["properties"],
        },
    },
    {
        "two voices": {
            "items": [
                {"input": "Good morning."},
                {"input": "Good morning to you.", "voice": "echo"},
            ],
            "voice": "alloy",
            "response_format": "mp3",
        }
    },
    JSON,
)

logger = logging.getLogger(__name__)


def add_routes(
    app: FastAPI,
    speech: Speech,
    background: Background,
    config: IngressConfig,
    recorder: metrics.Recorder,
) -> None:
    batch = _Batch(speech, background, config, recorder)

    @app.post(
        "/v1/audio/speech/batch", tags=["speech"], response_class=Response, openapi_extra=_DOCUMENT
    )
    @app.post("/audio/speech/batch", include_in_schema=False)
    async def create_batch(request: Request) -> Response:
        """Speak several texts, and send the audio of each in base64."""
        return await batch.respond(request)


class _Batch:
    def __init__(
        self,
        speech: Speech,
        background: Background,
        config: IngressConfig,
        recorder: metrics.Recorder,
    ) -> None:
        self._speech = speech
        self._look = background.look
        self._config = config
        self._recorder = recorder
        self._writer = AudioWriter(background.speak, config.read_ahead_s, recorder, speech.clock)

    async def respond(self, http: Request) -> Response:
        status = CLIENT_GONE  # unless there is an answer
        try:
            self._look()
            raw = await read_body(http, self._speech.max_body_bytes)
            client_id = http.headers.get("x-request-id")
            items = await self._speech.with_library(
                lambda: asyncio.to_thread(self._items, raw, client_id),
                lambda items: [item for item in items if isinstance(item, SpeechError)],
            )
            status = 200
        except ClientDisconnect:
            raise
        except Exception as error:
            status = error_response(error).status_code
            raise
        finally:
            self._recorder.count(metrics.REQUESTS, status=str(status))
        pieces = self._answer(items)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        first = await anext(pieces)
        stall_s = self._config.reader_timeout_s
        return AudioResponse(first, pieces, headers, "application/json", stall_s)

    def _items(self, raw: bytes, client_id: str | None) -> list[Checked | SpeechError]:
        """What each item asks for, or why it cannot be had.

        Raises:
            InvalidRequest: there are no items, or too many, or they are too long together.
        """
        defaults = dict(read_json(raw))
        stated, limits = defaults.pop("items", None), self._config.batch
        if not isinstance(stated, list) or not stated:
            raise InvalidRequest("'items' must be a list of at least one request.", "items")
        if len(stated) > limits.max_items:
            raise InvalidRequest(
                f"There are {len(stated)} items, at most {limits.max_items} are allowed.", "items"
            )
        own = [item.get("input") for item in stated if isinstance(item, dict)]
        texts = [defaults.get("input") if text is None else text for text in own]
        num_chars = sum(len(text) for text in texts if isinstance(text, str))
        if num_chars > limits.max_input_chars:
            raise InvalidRequest(
                f"The items have {num_chars} characters together, at most"
                f" {limits.max_input_chars} are allowed.",
                "items",
                "string_above_max_length",
            )
        return [self._item(item, defaults, client_id) for item in stated]

    def _item(
        self, item: Any, defaults: Mapping[str, Any], client_id: str | None
    ) -> Checked | SpeechError:
        if not isinstance(item, dict):
            return InvalidRequest("An item must be an object.", "items")
        own = {name: value for name, value in item.items() if value is not None}
        try:
            checked = self._speech.check({**defaults, **own}, client_id)
        except SpeechError as error:
            return error
        return replace(checked, job=replace(checked.job, transport="batch"))

    async def _answer(self, items: list[Checked | SpeechError]) -> AsyncGenerator[bytes, None]:
        yield b'{"id":"batch_%s","object":"audio.speech.batch","results":[' % (
            secrets.token_hex(12).encode()
        )
        making: deque[asyncio.Task[tuple[dict[str, Any], bytes | None]]] = deque()
        failed = 0
        try:
            for index in range(len(items)):
                # The next ones are begun when there is room for their results.
                while len(making) < self._config.background_streams and index + len(making) < len(
                    items
                ):
                    number = index + len(making)
                    making.append(asyncio.create_task(self._result(number, items[number])))
                while not (await asyncio.wait({making[0]}, timeout=_ALIVE_S))[0]:
                    yield b"\n"
                result, audio = making.popleft().result()
                failed += audio is None
                yield b"," if index else b"\n"
                for piece in _written(result, audio):
                    yield piece
        finally:
            for task in making:
                task.cancel()
            await asyncio.gather(*making, return_exceptions=True)
        counts = {"total": len(items), "succeeded": len(items) - failed, "failed": failed}
        yield b"]," + json.dumps(counts, separators=(",", ":")).encode("ascii")[1:]

    async def _result(
        self, index: int, item: Checked | SpeechError
    ) -> tuple[dict[str, Any], bytes | None]:
        """What is said of an item, and its audio in base64."""
        result: dict[str, Any] = {
            "index": index,
            "status": "error",
            "media_type": None,
            "error": None,
            "usage": None,
        }
        try:
            if isinstance(item, SpeechError):
                raise item
            job = await self._speech.voiced(item)
            data = await self._made(job)
        except Exception as error:
            if not isinstance(error, InvalidRequest | Overloaded):
                logger.error("an item of a batch failed", exc_info=error)
            answer = json.loads(bytes(error_response(error).body))
            return {**result, "error": answer["error"]}, None
        audio = await asyncio.to_thread(base64.b64encode, data)
        made = {"status": "success", "media_type": job.output.content_type, **ending_of(job)}
        return {**result, **made}, audio

    async def _made(self, job: Job) -> bytes:
        limit_s = self._config.batch.timeout_s
        timer = asyncio.timeout(limit_s)
        try:
            async with timer:
                data, _ = await self._writer.file(job)
        except TimeoutError as error:
            if not timer.expired():
                raise
            raise Overloaded(f"The server had no room within {limit_s:g} s.") from error
        return data


def _written(result: Mapping[str, Any], audio: bytes | None) -> Iterator[bytes]:
    """One element of `results`, its audio in pieces: hours of it take megabytes."""
    rest = json.dumps(result, separators=(",", ":")).encode("ascii")[1:]
    if audio is None:
        yield b'{"audio_data":null,' + rest
        return
    yield b'{"audio_data":"'
    for start in range(0, len(audio), _PIECE_BYTES):
        yield audio[start : start + _PIECE_BYTES]
    yield b'",' + rest
