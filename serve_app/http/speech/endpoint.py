"""`POST /v1/audio/speech`: from the HTTP request to a response that starts with audio.

A response starts when its first audio exists; what fails before becomes a JSON error with a
status, what fails after breaks the connection off, so that no client takes a part for the whole.
"""

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app import metrics
from serve_app.audio import provenance
from serve_app.audio.output import Output
from serve_app.config import IngressConfig
from serve_app.errors import SpeechError, StageFailed
from serve_app.http.errors import error_response
from serve_app.http.response import AudioResponse, ClientGone, until_gone
from serve_app.http.speech.body import parse
from serve_app.http.speech.request import engine_request_id, ignored, to_domain
from serve_app.http.speech.writer import AudioWriter, Job
from serve_app.resumption import Speak
from serve_app.types import ModelCard

_CLIENT_GONE: Final = 499  # nginx's number for it; nobody receives it, it is for log and metrics
_MAX_BODY_BYTES: Final = 1 << 20
logger = logging.getLogger(__name__)


class SpeechEndpoint:
    """Reads, checks and answers speech requests; `respond` is the route."""

    def __init__(
        self,
        speak: Speak,
        cards: Sequence[ModelCard],
        config: IngressConfig,
        recorder: metrics.Recorder,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cards = cards
        self._config = config
        self._recorder = recorder
        self._clock = clock
        self._writer = AudioWriter(speak, recorder, clock)

    async def respond(self, http: Request) -> Response:
        """Answer with audio or with the error that came before it; count the outcome."""
        try:
            response = await self._respond(http)
        except (ClientGone, ClientDisconnect):
            response = Response(status_code=_CLIENT_GONE)
        except (SpeechError, HTTPException) as error:
            if isinstance(error, StageFailed):
                logger.error("speech failed before its first audio", exc_info=error)
            response = error_response(error)
        except Exception as error:
            logger.exception("speech failed before its first audio")
            response = error_response(error)
        self._recorder.count(metrics.REQUESTS, status=str(response.status_code))
        return response

    async def _respond(self, http: Request) -> Response:
        job, warning = self._accept(await _read_body(http), http.headers.get("x-request-id"))
        if job.transport == "file":
            data, reason = await until_gone(http.receive, self._writer.file(job))
            headers = {**self._headers(job, warning), "X-Finish-Reason": reason}
            return Response(data, headers=headers, media_type=job.output.content_type)
        pieces = self._writer.pieces(job)
        try:
            first = await until_gone(http.receive, _next(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        return AudioResponse(first, pieces, self._headers(job, warning), job.output.content_type)

    def _accept(self, raw: bytes, client_id: str | None) -> tuple[Job, str | None]:
        """The job that a body asks for, and a warning about what of it is ignored."""
        start_s = self._clock()
        body = parse(raw)
        request = to_domain(body, self._cards, self._config, engine_request_id(client_id))
        card = next(card for card in self._cards if card.name == request.model)
        job = Job(
            request,
            card,
            Output(body.audio_format, card.sample_rate_hz, body.sample_rate, body.speed or 1.0),
            "file" if body.stream is False else "stream",
            start_s,
        )
        warning = ignored(body, request)
        if warning is not None:
            logger.warning("%s: %s", request.request_id, warning)
        return job, warning

    def _headers(self, job: Job, warning: str | None) -> dict[str, str]:
        elapsed_s = self._clock() - job.start_s
        rate_hz = str(job.output.sample_rate_hz)
        headers = {
            **provenance.HEADERS,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Content-Disposition": f'inline; filename="speech.{job.output.format}"',
            "X-Audio-Sample-Rate": rate_hz,
            "X-Audio-Channels": "1",
            # The names that sglang-omni's clients read.
            "X-Sample-Rate": rate_hz,
            "X-Channels": "1",
            "openai-processing-ms": str(round(elapsed_s * 1000)),
            # Until the first audio, but `ingress` until the response starts: for a file, all of it.
            "Server-Timing": ", ".join(
                f"{name};dur={1000 * seconds:.2f}"
                for name, seconds in (*job.timings, ("ingress", elapsed_s))
            ),
        }
        if warning is not None:
            headers["X-Warning"] = warning
        return headers


async def _next(pieces: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(pieces)


async def _read_body(http: Request) -> bytes:
    """The body, counted while it comes in: a length that a client states proves nothing."""
    parts: list[bytes] = []
    size = 0
    async for part in http.stream():
        size += len(part)
        if size > _MAX_BODY_BYTES:
            raise HTTPException(413, f"The request body is larger than {_MAX_BODY_BYTES} bytes.")
        parts.append(part)
    return b"".join(parts)
