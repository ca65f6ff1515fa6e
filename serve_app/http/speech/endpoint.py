"""`POST /v1/audio/speech`: from the HTTP request to a response that starts with audio.

A response starts when its first audio exists; what fails before becomes a JSON error with a
status, what fails after breaks the connection off, so that no client takes a part for the whole.
"""

import logging
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serve_app import metrics
from serve_app.audio import provenance
from serve_app.config import IngressConfig
from serve_app.errors import Full, SpeechError, StageFailed
from serve_app.http.errors import error_response
from serve_app.http.observe.record import current
from serve_app.http.reading import read_body
from serve_app.http.response import CLIENT_GONE, AudioResponse, ClientGone, until_gone
from serve_app.http.speech import sse
from serve_app.http.speech.accept import Checked, Job, Speech, Translate
from serve_app.http.speech.document import SPEECH
from serve_app.http.speech.sse import openai_events, together_events, usage
from serve_app.http.speech.writer import AudioWriter

Read = Callable[[], Awaitable[Checked]]

logger = logging.getLogger(__name__)


def add_routes(
    app: FastAPI,
    speech: Speech,
    writer: AudioWriter,
    config: IngressConfig,
    recorder: metrics.Recorder,
    look: Callable[[int], None],
) -> "SpeechEndpoint":
    """The routes, and what answers them, for other dialects."""
    endpoint = SpeechEndpoint(speech, writer, config, recorder, look)

    @app.post("/v1/audio/speech", tags=["speech"], response_class=Response, openapi_extra=SPEECH)
    @app.post("/audio/speech", include_in_schema=False)
    async def create_speech(request: Request) -> Response:
        """Speak a text, and send the audio while it is made."""
        if "text/event-stream" in request.headers.get("accept", ""):
            return await endpoint.respond(request, lambda body: {"stream_format": "sse", **body})
        return await endpoint.respond(request, lambda body: body)

    return endpoint


class SpeechEndpoint:
    """Reads, checks and answers speech requests; `respond` is the route."""

    def __init__(
        self,
        speech: Speech,
        writer: AudioWriter,
        config: IngressConfig,
        recorder: metrics.Recorder,
        look: Callable[[int], None],
    ) -> None:
        self._speech = speech
        self._look = look
        self._stall_s = config.reader_timeout_s
        self._recorder = recorder
        self._writer = writer

    async def respond(self, http: Request, translate: Translate) -> Response:
        """Answer a request in JSON; see `answer`."""

        async def read() -> Checked:
            raw = await read_body(http, self._speech.max_body_bytes)
            return await self._speech.read(raw, translate, http.headers.get("x-request-id"))

        return await self.answer(http, read)

    async def answer(self, http: Request, read: Read) -> Response:
        """Answer what `read` reads with audio, or with the error that came before it; count the
        outcome, whatever it is.
        """
        status = CLIENT_GONE  # unless there is an answer: a server cancels what nobody waits for
        try:
            response = await self._answer(http, read)
            status = response.status_code
            return response
        except Exception:
            status = 500
            raise
        finally:
            self._recorder.count(metrics.REQUESTS, status=str(status))

    async def _answer(self, http: Request, read: Read) -> Response:
        try:
            return await self._audio(http, read)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_GONE)
        except (SpeechError, HTTPException) as error:
            if isinstance(error, StageFailed):
                logger.error("speech failed before its first audio", exc_info=error)
            return error_response(error)
        except Exception as error:
            logger.exception("speech failed before its first audio")
            return error_response(error)

    async def _audio(self, http: Request, read: Read) -> Response:
        try:
            self._look(current().priority)
        except Full:
            current().full = True
            raise
        checked = await read()
        job = checked.job
        if checked.wanted is not None:
            job = await until_gone(http.receive, self._speech.voiced(checked))
        if job.transport == "file":
            data, reason = await until_gone(http.receive, self._writer.file(job))
            used = usage(job)
            headers = {
                **self._headers(job),
                "X-Finish-Reason": reason,
                **{
                    f"X-Usage-{kind}-Tokens": str(used[f"{kind.lower()}_tokens"])
                    for kind in ("Input", "Output", "Total")
                },
            }
            return Response(data, headers=headers, media_type=job.output.content_type)
        pieces, content_type = self._writer.pieces(job), job.output.content_type
        if job.transport == "sse":
            pieces, content_type = openai_events(job, pieces), sse.CONTENT_TYPE
        elif job.transport == "together":
            pieces, content_type = together_events(pieces), sse.CONTENT_TYPE
        try:
            first = await until_gone(http.receive, anext(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        return AudioResponse(first, pieces, self._headers(job), content_type, self._stall_s)

    def _headers(self, job: Job) -> dict[str, str]:
        rate_hz = str(job.output.sample_rate_hz)
        elapsed_s = self._speech.clock() - job.start_s
        headers = {
            **provenance.HEADERS,
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
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
        if job.transport not in ("sse", "together"):
            name = f"speech.{job.output.format}"
            headers["Content-Disposition"] = f'inline; filename="{name}"'
        if job.warning is not None:
            headers["X-Warning"] = job.warning
        return headers
