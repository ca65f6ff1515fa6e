"""The audio of one request as the bytes of a response body, measured while it is made."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from serve_app import metrics
from serve_app.audio.formats import AudioFormat, encode_file
from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.pipeline import join
from serve_app.resumption import Speak
from serve_app.types import FinishReason, ModelCard, SpeechRequest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request and what its response needs to know.

    timings: filled with those of the first audio when it comes.
    """

    request: SpeechRequest
    card: ModelCard
    format: AudioFormat
    transport: Literal["stream", "file"]
    start_s: float
    timings: list[tuple[str, float]] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        return {"format": self.format, "transport": self.transport}

    @property
    def content_type(self) -> str:
        return self.format.content_type(self.card.sample_rate_hz)


class AudioCut(Exception):
    """Leaves the application in the middle of a body, which makes the server drop the connection.

    Raised only after the first byte, where no exception handler can answer any more.
    """


class AudioWriter:
    """Writes the audio of a job, whole or piece by piece."""

    def __init__(
        self,
        speak: Speak,
        recorder: metrics.Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._speak = speak
        self._recorder = recorder
        self._clock = clock

    async def file(self, job: Job) -> tuple[bytes, FinishReason]:
        async with aclosing(self._speak(job.request)) as chunks:
            whole = await join(chunks)
        if not len(whole.samples) or whole.finish_reason is None:
            raise StageFailed("the model made no audio")
        job.timings.extend(whole.timings)
        data = encode_file(whole.samples, job.format, job.card.sample_rate_hz)
        self._observe_first(job)
        self._observe_end(job, len(whole.samples), whole.finish_reason, None)
        return data, whole.finish_reason

    async def pieces(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Yield the body piece by piece, each with audio in it.

        Raises:
            SpeechError: before the first piece.
            AudioCut: after it.
        """
        encoder = job.format.encoder(job.card.sample_rate_hz)
        num_samples = 0
        reason: FinishReason | None = None
        broke: str | None = "client_gone"  # unless the end or an error is reached
        try:
            async with aclosing(self._speak(job.request)) as chunks:
                async for chunk in chunks:
                    reason = chunk.finish_reason
                    if not len(chunk.samples):
                        continue
                    data = encoder.encode(chunk.samples)
                    if not num_samples:
                        job.timings.extend(chunk.timings)
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
