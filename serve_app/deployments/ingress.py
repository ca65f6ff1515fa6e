"""The HTTP server: `build_api` around any `speak`, and the Serve deployment around `build_api`.

A response starts when its first audio exists; what fails before becomes a JSON error with a
status, what fails after breaks the connection off, so that no client takes a part for the whole.
There is no middleware here: Starlette's `BaseHTTPMiddleware` would end such a body cleanly.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Histogram
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from serve_app import __version__, metrics
from serve_app.audio import AudioFormat, encode_file, stream_encoder
from serve_app.config import IngressConfig
from serve_app.deployments import openai_api
from serve_app.errors import (
    InvalidRequest,
    Overloaded,
    SpeechError,
    StageFailed,
    StageUnavailable,
    UnknownModel,
)
from serve_app.pipeline import join, with_deadlines
from serve_app.types import FinishReason, ModelCard, PcmChunk, SpeechRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")
Speak = Callable[[SpeechRequest], AsyncGenerator[PcmChunk, None]]
State = Literal["healthy", "initializing", "degraded", "unhealthy"]
Resumable = Callable[[SpeechRequest, np.ndarray | None], AsyncGenerator[PcmChunk, None]]

_CLIENT_GONE: Final = 499  # nginx's number for it; nobody receives it, it is for log and metrics
_WARM_UP_FRAMES: Final = 4
_WARM_UP_PAUSES_S: Final = (0.5, 1.0, 2.0, 5.0)
_STATUS_MAX_AGE_S: Final = 2.0
_EMBEDDED_NOTE: Final = (
    "The embedded random checkpoint is served: it makes audio of the right length and format,"
    " but not words. Set TTS_MODEL to serve a released checkpoint."
)


@dataclass(frozen=True, slots=True)
class Status:
    """Whether requests can be served, and the facts that `/health` shows.

    `replicas` counts the running ("ready") and all ("total") replicas of each deployment. `info`
    comes from the application: "backend", "placement", "devices" and whatever else it tells.
    """

    state: State
    ready: bool
    reason: str | None = None
    replicas: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)


class ClientGone(Exception):
    """The client closed the connection."""


class AudioCut(Exception):
    """Leaves the application in the middle of a body, which makes the server drop the connection.

    Raised only after the first byte, where no exception handler can answer any more.
    """


def build_api(
    speak: Speak,
    cards: Sequence[ModelCard],
    config: IngressConfig,
    status: Callable[[], Awaitable[Status]],
    recorder: metrics.Recorder | None = None,
) -> FastAPI:
    """The application: `speak` makes the audio, `cards` say what is served, the default first."""
    app = FastAPI(title="Qwen3-TTS", version=__version__)
    created = int(time.time())
    speech = SpeechEndpoint(speak, cards, config, recorder or metrics.NoRecorder())
    body_schema = {"content": {"application/json": {"schema": _body_schema()}}, "required": True}

    @app.post("/v1/audio/speech", openapi_extra={"requestBody": body_schema})
    @app.post("/audio/speech", include_in_schema=False)
    async def create_speech(request: Request) -> Response:
        return await speech.respond(request)

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {
            "object": "list",
            "data": [openai_api.model_object(card, created) for card in cards],
        }

    @app.get("/v1/models/{model_id:path}")
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        card = openai_api.find_card(model_id, cards)
        if card is None:
            message = f"The model '{model_id}' does not exist."
            raise UnknownModel(message, "model", "model_not_found")
        return openai_api.model_object(card, created)

    @app.get("/v1/audio/models")
    async def list_audio_models() -> dict[str, Any]:
        return {"models": [{"id": card.name, "name": card.name} for card in cards]}

    @app.get("/v1/audio/voices")
    async def list_voices(legacy: bool = False) -> Mapping[str, Any]:
        return openai_api.voices_body(cards, created, legacy)

    @app.get("/health")
    async def health() -> JSONResponse:
        now = await status()
        return JSONResponse(_health_body(now, cards), 200 if _able(now) else 503)

    @app.get("/ready")
    @app.get("/readyz", include_in_schema=False)
    async def ready() -> JSONResponse:
        now = await status()
        return JSONResponse({"ready": now.ready, "reason": now.reason}, 200 if now.ready else 503)

    @app.get("/livez", include_in_schema=False)
    async def live() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @app.get("/", include_in_schema=False)
    async def root() -> dict[str, str]:
        return {
            "name": "Qwen3-TTS",
            "version": __version__,
            "docs": "/docs",
            "speech": "/v1/audio/speech",
        }

    async def on_error(request: Request, error: Exception) -> Response:
        if isinstance(error, RequestValidationError):
            first = error.errors()[0]
            name = str(first["loc"][-1])
            error = InvalidRequest(f"Invalid value for '{name}': {first['msg']}.", name)
        elif isinstance(error, HTTPException) and error.status_code in (404, 405):
            what = "Unknown path" if error.status_code == 404 else "Method not allowed"
            detail = f"{what}: {request.method} {request.url.path}"
            error = HTTPException(error.status_code, detail, error.headers)
        return openai_api.error_response(error)

    for kind in (SpeechError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, on_error)
    return app


def _body_schema() -> dict[str, Any]:
    return openai_api.SpeechBody.model_json_schema()


def _able(status: Status) -> bool:
    return status.state in ("healthy", "degraded")


def _health_body(status: Status, cards: Sequence[ModelCard]) -> dict[str, Any]:
    embedded = any(card.embedded for card in cards)
    body: dict[str, Any] = {
        "status": status.state,
        "version": __version__,
        "models": [card.name for card in cards],
        **status.info,
        "backend": {
            "name": status.info.get("backend", "vllm"),
            "model_id": cards[0].name,
            "ready": status.ready,
        },
        "replicas": status.replicas,
        "embedded": embedded,
    }
    if embedded:
        body["note"] = _EMBEDDED_NOTE
    if status.reason is not None:
        body["reason"] = status.reason
    return body


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request and what its response needs to know."""

    request: SpeechRequest
    card: ModelCard
    format: AudioFormat
    transport: Literal["stream", "file"]
    start_s: float

    @property
    def labels(self) -> dict[str, str]:
        return {"format": self.format, "transport": self.transport}


class SpeechEndpoint:
    """`POST /v1/audio/speech`."""

    def __init__(
        self,
        speak: Speak,
        cards: Sequence[ModelCard],
        config: IngressConfig,
        recorder: metrics.Recorder,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._speak = speak
        self._cards = cards
        self._config = config
        self._recorder = recorder
        self._clock = clock

    async def respond(self, http: Request) -> Response:
        """Answer with audio or with the error that came before it; count the outcome."""
        try:
            response = await self._respond(http)
        except (ClientGone, ClientDisconnect):
            response = Response(status_code=_CLIENT_GONE)
        except (SpeechError, HTTPException) as error:
            if isinstance(error, StageFailed):
                logger.error("speech failed before its first audio", exc_info=error)
            response = openai_api.error_response(error)
        except Exception as error:
            logger.exception("speech failed before its first audio")
            response = openai_api.error_response(error)
        self._recorder.count(metrics.REQUESTS, status=str(response.status_code))
        return response

    async def _respond(self, http: Request) -> Response:
        raw = await _read_body(http)
        start_s = self._clock()
        body = openai_api.parse(raw)
        request_id = openai_api.engine_request_id(http.headers.get("x-request-id"))
        request = openai_api.to_domain(body, self._cards, self._config, request_id)
        job = Job(
            request,
            next(card for card in self._cards if card.name == request.model),
            body.audio_format,
            "file" if body.stream is False else "stream",
            start_s,
        )
        warning = openai_api.ignored(body, request)
        if warning is not None:
            logger.warning("%s: %s", request.request_id, warning)
        if job.transport == "file":
            data, reason = await _until_gone(http.receive, self._file(job))
            return Response(
                data,
                headers={**self._headers(job, warning), "X-Finish-Reason": reason},
                media_type=job.format.content_type(job.card.sample_rate_hz),
            )
        pieces = self._pieces(job)
        try:
            first = await _until_gone(http.receive, _next(pieces))
        except BaseException:
            await pieces.aclose()
            raise
        return AudioResponse(
            first,
            pieces,
            self._headers(job, warning),
            job.format.content_type(job.card.sample_rate_hz),
        )

    def _headers(self, job: Job, warning: str | None) -> dict[str, str]:
        headers = {
            "Cache-Control": "no-store",
            "X-Accel-Buffering": "no",
            "Content-Disposition": f'inline; filename="speech.{job.format}"',
            "X-Audio-Sample-Rate": str(job.card.sample_rate_hz),
            "X-Audio-Channels": "1",
            "openai-processing-ms": str(round((self._clock() - job.start_s) * 1000)),
        }
        if warning is not None:
            headers["X-Warning"] = warning
        return headers

    def _chunks(self, job: Job) -> AsyncGenerator[PcmChunk, None]:
        config = self._config
        chunks = self._speak(job.request)
        return with_deadlines(chunks, config.first_audio_timeout_s, config.chunk_timeout_s)

    async def _file(self, job: Job) -> tuple[bytes, FinishReason]:
        async with aclosing(self._chunks(job)) as chunks:
            whole = await join(chunks)
        if not len(whole.samples) or whole.finish_reason is None:
            raise StageFailed("the model made no audio")
        data = encode_file(whole.samples, job.format, job.card.sample_rate_hz)
        self._observe_first(job)
        self._observe_end(job, len(whole.samples), whole.finish_reason, None)
        return data, whole.finish_reason

    async def _pieces(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Yield the body piece by piece, each with audio in it.

        Raises:
            SpeechError: before the first piece.
            AudioCut: after it.
        """
        encoder = stream_encoder(job.format, job.card.sample_rate_hz)
        num_samples = 0
        reason: FinishReason | None = None
        broke: str | None = "client_gone"  # unless the end or an error is reached
        try:
            async with aclosing(self._chunks(job)) as chunks:
                async for chunk in chunks:
                    reason = chunk.finish_reason
                    if not len(chunk.samples):
                        continue
                    data = encoder.encode(chunk.samples)
                    if not num_samples:
                        self._observe_first(job)
                    num_samples += len(chunk.samples)
                    yield data
            if reason is None or not num_samples:
                raise StageFailed("the audio ended without a finish reason or without samples")
            tail = encoder.finish()
            if tail:
                yield tail
            broke = None
        except Exception as error:
            broke = _abort_reason(error)
            if not num_samples:
                raise
            raise AudioCut(f"{job.request.request_id}: {error}") from error
        finally:
            if num_samples:
                self._observe_end(job, num_samples, reason, broke)

    def _observe_first(self, job: Job) -> None:
        elapsed_s = self._clock() - job.start_s
        self._recorder.observe(metrics.TIME_TO_FIRST_AUDIO, elapsed_s, **job.labels)

    def _observe_end(
        self, job: Job, num_samples: int, reason: FinishReason | None, broke: str | None
    ) -> None:
        elapsed_s = self._clock() - job.start_s
        audio_s = num_samples / job.card.sample_rate_hz
        self._recorder.observe(metrics.REQUEST_DURATION, elapsed_s, **job.labels)
        if broke is None:
            self._recorder.observe(metrics.AUDIO_DURATION, audio_s, **job.labels)
        else:
            self._recorder.count(metrics.STREAMS_ABORTED, reason=broke)
        logger.info(
            "%s: %.2f s of %s in %.3f s, voice %s, %d characters, %s",
            job.request.request_id,
            audio_s,
            job.format,
            elapsed_s,
            job.request.voice,
            len(job.request.text),
            f"cut: {broke}" if broke else f"finished: {reason}",
        )


def _abort_reason(error: Exception) -> str:
    match error:
        case StageUnavailable():
            return "stage_unavailable"
        case StageFailed():
            return "stage_failed"
        case Overloaded():
            return "overloaded"
        case _:
            return "other"


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
            await _until_gone(receive, self.stream_response(send))
        except (ClientGone, OSError):  # a server may report the loss on `send` instead
            return
        finally:
            await self._pieces.aclose()


async def _prepend(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    yield first
    async for piece in rest:
        yield piece


async def _next(pieces: AsyncGenerator[T, None]) -> T:
    return await anext(pieces)


async def _until_gone(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
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


async def _read_body(http: Request) -> bytes:
    """The body, counted while it comes in: a length that a client states proves nothing."""
    parts: list[bytes] = []
    size = 0
    async for part in http.stream():
        size += len(part)
        if size > openai_api.MAX_BODY_BYTES:
            limit = openai_api.MAX_BODY_BYTES
            raise HTTPException(413, f"The request body is larger than {limit} bytes.")
        parts.append(part)
    return b"".join(parts)


def from_ray(error: BaseException) -> SpeechError:
    """The error that a call through a handle stands for.

    Ray wraps what a replica raises, once per replica on the way; inside is the original.
    """
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    match error:
        case SpeechError():
            return error
        case BackPressureError():
            return Overloaded("The server is at its limit.", error.retry_after_s or 1.0)
        case (
            RayActorError()
            | NodeDiedError()
            | WorkerCrashedError()
            | ObjectLostError()
            | ReplicaUnavailableError()
            | DeploymentUnavailableError()
        ):
            return StageUnavailable("a replica died or cannot be reached")
        case RequestCancelledError() | TaskCancelledError() | asyncio.CancelledError():
            return StageUnavailable("a replica stopped")
        case _:
            return StageFailed(f"{type(error).__name__} in a stage")


def resumed(call: Resumable) -> Speak:
    """A `speak` that goes on at another replica, once per request, when the first one is lost.

    Chunks carry the codes they were made from, so the second call is told what the listener has
    and yields the rest. The router avoids the replica that has just been lost.
    """

    async def speak(request: SpeechRequest) -> AsyncGenerator[PcmChunk, None]:
        done: list[np.ndarray] = []
        for last_try in (False, True):
            try:
                async with aclosing(
                    call(request, np.concatenate(done) if done else None)
                ) as chunks:
                    async for chunk in chunks:
                        done.append(chunk.codes)
                        yield chunk
                return
            except StageUnavailable:
                if last_try:
                    raise
                logger.warning("%s: replica lost, going on at another", request.request_id)

    return speak


def through(handle: DeploymentHandle) -> Resumable:
    """Calls of the deployment method `speak`, with the errors of `from_ray`; closing cancels."""
    streaming = handle.options(stream=True)

    async def call(
        request: SpeechRequest, done: np.ndarray | None
    ) -> AsyncGenerator[PcmChunk, None]:
        response: Any = streaming.speak.remote(request, done)
        ended = False
        try:
            async for chunk in response:
                yield chunk
            ended = True
        except asyncio.CancelledError as error:
            # Serve reports a call that was cancelled over there in the same way as our own end.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            ended = True
            raise from_ray(error) from error
        except Exception as error:
            ended = True
            raise from_ray(error) from error
        finally:
            if not ended:
                response.cancel()

    return call


class WarmUp:
    """One short synthesis per model through all stages, repeated until it passes."""

    def __init__(
        self,
        speak: Speak,
        cards: Sequence[ModelCard],
        config: IngressConfig,
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> None:
        self._speak = speak
        self._cards = cards
        self._config = config
        self._sleep = sleep
        self.reason: str | None = "the first synthesis has not finished yet"

    @property
    def passed(self) -> bool:
        return self.reason is None

    async def run(self) -> None:
        for card in self._cards:
            await self._warm(card)
        self.reason = None

    async def _warm(self, card: ModelCard) -> None:
        attempt = 0
        while True:
            try:
                limit_s = self._config.first_audio_timeout_s
                chunks = self._speak(_warm_up_request(card))
                async with aclosing(with_deadlines(chunks, limit_s, limit_s)) as timed:
                    await join(timed)
                return
            except Exception as error:  # whatever it is: not ready, and the reason is shown
                self.reason = f"the first synthesis failed: {type(error).__name__}"
                logger.warning("warm-up of %s failed, trying again", card.name, exc_info=error)
            await self._sleep(_WARM_UP_PAUSES_S[min(attempt, len(_WARM_UP_PAUSES_S) - 1)])
            attempt += 1


def _warm_up_request(card: ModelCard) -> SpeechRequest:
    return SpeechRequest(
        request_id=openai_api.engine_request_id("warm-up"),
        model=card.name,
        text="Hello.",
        voice=card.voices[0] if card.voices else None,
        language="auto",
        seed=0,
        instructions="A calm voice." if card.task == "voice_design" else None,
        max_new_tokens=_WARM_UP_FRAMES,
    )


@serve.deployment
@serve.ingress()
class Ingress:
    """The Serve deployment: each replica builds the application for itself.

    Args:
        speech: the deployment whose `speak(request, done)` yields `PcmChunk`s.
        cards: what is served, the default first.
        info: what `Status.info` shows.
    """

    def __init__(
        self,
        speech: DeploymentHandle,
        cards: Sequence[ModelCard],
        config: IngressConfig,
        info: Mapping[str, Any],
    ) -> None:
        self._cards = cards
        self._config = config
        self._info = info
        self._speak = resumed(through(speech))
        self._warm_up = WarmUp(self._speak, cards, config)
        self._warming: asyncio.Task[None] | None = None
        self._replicas: Mapping[str, Mapping[str, int]] = {}
        self._replicas_at_s = float("-inf")

    async def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve on the event loop that the application runs on."""
        self._warming = asyncio.create_task(self._warm_up.run())
        recorder = metrics.MetricsRecorder(Counter, Histogram)
        return build_api(self._speak, self._cards, self._config, self.status, recorder)

    async def status(self) -> Status:
        replicas = await self._count_replicas()
        dead = [name for name, n in replicas.items() if n["total"] and not n["ready"]]
        state: State
        if not self._warm_up.passed:
            state, reason = "initializing", self._warm_up.reason
        elif dead:
            state, reason = "unhealthy", f"no running replica of {', '.join(dead)}"
        elif any(n["ready"] < n["total"] for n in replicas.values()):
            state, reason = "degraded", None
        else:
            state, reason = "healthy", None
        return Status(
            state=state,
            ready=state in ("healthy", "degraded"),
            reason=reason,
            replicas=replicas,
            info=self._info,
        )

    async def _count_replicas(self) -> Mapping[str, Mapping[str, int]]:
        """Ask Serve's controller, at most every two seconds; what was known last if it is away."""
        now_s = time.monotonic()
        if now_s - self._replicas_at_s > _STATUS_MAX_AGE_S:
            self._replicas_at_s = now_s
            app_name = serve.get_replica_context().app_name
            try:
                # The call blocks, and this loop carries the audio of other requests.
                counting = asyncio.to_thread(_replica_counts, app_name)
                self._replicas = await asyncio.wait_for(counting, _STATUS_MAX_AGE_S)
            except Exception as error:
                logger.warning("cannot ask Serve for its replicas", exc_info=error)
        return self._replicas


def _replica_counts(app_name: str) -> dict[str, dict[str, int]]:
    application = serve.status().applications[app_name]
    return {
        name: {
            "ready": sum(n for state, n in deployment.replica_states.items() if state == "RUNNING"),
            "total": sum(deployment.replica_states.values()),
        }
        for name, deployment in application.deployments.items()
    }
