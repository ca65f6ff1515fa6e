"""Spans of OpenTelemetry, where the configuration asks for them: a request, its units, the stages.

    POST /v1/audio/speech            from the request to the end of its body
      unit                           one per call of the stages
        talker_queue, talker, decode, stages, replica
                                     until the unit's first audio, as each measured it

The request's span goes on from the client's `traceparent`. Spans are sent by OpenTelemetry's own
exporter, to where its usual environment variables say. Without tracing nothing of it is imported.
"""

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from typing import Any, Final, Protocol

from starlette.types import Scope

from serve_app.http.observe.record import Record
from serve_app.resumption import Speak
from serve_app.types import PcmChunk, SpeechRequest

_SERVICE: Final = "qwen3-tts"
_NS: Final = 1e9


class Tracer(Protocol):
    def request(self, record: Record, scope: Scope) -> AbstractContextManager[None]:
        """Around a request, whose record is complete when it ends."""
        ...

    def units(self, speak: Speak) -> Speak:
        """`speak`, with a span for each call."""
        ...


class NoTracer:
    """Costs nothing."""

    def request(self, record: Record, scope: Scope) -> AbstractContextManager[None]:
        del record, scope
        return nullcontext()

    def units(self, speak: Speak) -> Speak:
        return speak


class OpenTelemetryTracer:
    """Spans through `provider`, a TracerProvider of OpenTelemetry's SDK."""

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer(_SERVICE)

    @contextmanager
    def request(self, record: Record, scope: Scope) -> Iterator[None]:
        # Only the context of W3C: baggage is the client's own business.
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in scope["headers"]
            if name in (b"traceparent", b"tracestate")
        }
        with self._tracer.start_as_current_span(
            f"{record.method} {record.path if record.path.startswith('/v1/') else 'other'}",
            context=self._propagator.extract(carrier),
            kind=self._trace.SpanKind.SERVER,
        ) as span:
            try:
                yield
            finally:
                span.set_attributes(_attributes(record))
                if (record.status or 0) >= 500 or record.broke:
                    span.set_status(self._trace.StatusCode.ERROR, record.broke or record.error)

    def units(self, speak: Speak) -> Speak:
        async def traced(request: SpeechRequest) -> AsyncGenerator[PcmChunk, None]:
            # Not made the current one: a generator runs in the contexts of whoever iterates it.
            begin_s = time.time()
            span = self._tracer.start_span("unit", attributes={"tts.id": request.request_id})
            around = self._trace.set_span_in_context(span)
            frames = 0
            try:
                async with aclosing(speak(request)) as chunks:
                    async for chunk in chunks:
                        for name, seconds in chunk.timings:
                            stage = self._tracer.start_span(
                                name, context=around, start_time=round(begin_s * _NS)
                            )
                            stage.end(round((begin_s + seconds) * _NS))
                        frames += len(chunk.codes)
                        yield chunk
            except Exception as error:
                span.set_status(self._trace.StatusCode.ERROR, type(error).__name__)
                raise
            finally:
                span.set_attribute("tts.frames", frames)
                span.set_attribute("tts.characters", len(request.text))
                span.end()

        return traced


def make_tracer(enabled: bool) -> Tracer:
    """The tracer that the configuration asks for.

    Raises:
        RuntimeError: the packages are not there.
    """
    if not enabled:
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise RuntimeError(
            "ingress.observe.tracing needs the extra `otel`: pip install 'qwen3-tts-serve[otel]'"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": _SERVICE}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryTracer(provider)


def _attributes(record: Record) -> dict[str, Any]:
    found = {
        "http.request.method": record.method,
        "url.path": record.path,
        "http.response.status_code": record.status,
        "tts.request_id": record.request_id,
        "tts.key": record.key,
        "tts.model": record.model,
        "tts.voice": record.voice,
        "tts.format": record.format,
        "tts.characters": record.characters,
        "tts.audio_s": record.audio_s,
        "tts.finish_reason": record.finish_reason,
        "tts.resumed": record.resumed,
        "gen_ai.server.time_to_first_token": record.first_audio_s,
    }
    return {name: value for name, value in found.items() if value is not None}
