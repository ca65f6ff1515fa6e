"""The outermost layer: makes the record of a request, and tells of it when the request is over."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import metrics
from serve_app.http.access.credentials import is_open, is_speech, path_of
from serve_app.http.observe import log
from serve_app.http.observe.record import Record, begin
from serve_app.http.observe.tracing import Tracer
from serve_app.http.response import CLIENT_GONE

_MAX_SHOWN: Final = 200


class Observed:
    """Counts, logs and traces what goes through.

    A line is written for each request for speech, and for each that fails; signs of life, lists and
    the playground's files pass in silence.
    """

    def __init__(
        self,
        app: ASGIApp,
        recorder: metrics.Recorder,
        tracer: Tracer,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._app = app
        self._recorder = recorder
        self._tracer = tracer
        self._clock = clock
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        record = _record_of(scope)
        begin(record)
        is_work = is_speech(scope)
        start_s = self._clock()
        self._note_running(is_work, 1)

        async def noted(message: Message) -> None:
            await send(message)
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    record.status = message["status"]
                case "websocket.accept":
                    record.status = 101

        try:
            with self._tracer.request(record, scope):
                await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            record.broke = record.broke or "cancelled"
            raise
        except Exception as error:
            if record.status is None:
                record.status = 500
            record.broke = record.broke or type(error).__name__
            raise
        finally:
            self._note_running(is_work, -1)
            if record.status is None:  # a client that left before there was an answer
                record.status = CLIENT_GONE
            if is_work and record.retry:
                self._recorder.count(metrics.RETRIED)
            if is_work and record.audio_s:
                self._recorder.observe(metrics.REQUEST_QUEUE, record.waited_s, at="ingress")
            failed = record.status >= 400 and not is_open(scope)
            if is_work or failed:
                log.write(record, self._clock() - start_s)

    def _note_running(self, is_work: bool, change: int) -> None:
        if is_work:
            self._running += change
            self._recorder.set(metrics.REQUESTS_OPEN, self._running)


def _record_of(scope: Scope) -> Record:
    headers = Headers(scope=scope)
    retry = headers.get("x-stainless-retry-count", "")
    return Record(
        request_id=headers.get("x-request-id", "-")[:_MAX_SHOWN],
        method=scope.get("method", "WS"),
        path=path_of(scope)[:_MAX_SHOWN],
        client=headers.get("user-agent", "")[:_MAX_SHOWN],
        retry=int(retry) if retry.isascii() and retry.isdigit() and len(retry) < 4 else 0,
    )
