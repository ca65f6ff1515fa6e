"""The audio of one request as the bytes of a response body, measured while it is made."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from serve_app import metrics
from serve_app.audio.output import Output
from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.pipeline import join
from serve_app.resumption import Speak
from serve_app.types import FinishReason, ModelCard, SpeechRequest

T = TypeVar("T")

# Encoders let go of Python's lock while they work.
_THREADS: Final = min(8, os.cpu_count() or 1)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """One accepted request and what its response needs to know.

    timings: filled with those of the first audio when it comes.
    """

    request: SpeechRequest
    card: ModelCard
    output: Output
    transport: Literal["stream", "file"]
    start_s: float
    timings: list[tuple[str, float]] = field(default_factory=list)

    @property
    def labels(self) -> dict[str, str]:
        return {"format": self.output.format, "transport": self.transport}


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
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="encoder")

    async def file(self, job: Job) -> tuple[bytes, FinishReason]:
        async with aclosing(self._speak(job.request)) as chunks:
            whole = await join(chunks)
        if not len(whole.samples) or whole.finish_reason is None:
            raise StageFailed("the model made no audio")
        job.timings.extend(whole.timings)
        data = await self._run(job, job.output.file, whole.samples)
        self._observe_first(job)
        self._observe_end(job, len(whole.samples), whole.finish_reason, None)
        return data, whole.finish_reason

    async def pieces(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Yield the body piece by piece, each with audio in it.

        Raises:
            SpeechError: before the first piece.
            AudioCut: after it.
        """
        num_samples = 0
        has_begun = False
        reason: FinishReason | None = None
        broke: str | None = "client_gone"  # unless the end or an error is reached
        try:
            async with aclosing(self._encoded(job)) as encoded:
                async for data, samples, finish_reason in encoded:
                    num_samples += samples
                    reason = finish_reason
                    if data and not has_begun:
                        self._observe_first(job)
                        has_begun = True
                    if data:
                        yield data
            broke = None
        except Exception as error:
            broke = _abort_reason(error)
            if not has_begun:
                raise
            raise AudioCut(f"{job.request.request_id}: {error}") from error
        finally:
            if has_begun:
                self._observe_end(job, num_samples, reason, broke)

    async def _encoded(
        self, job: Job
    ) -> AsyncGenerator[tuple[bytes, int, FinishReason | None], None]:
        """The bytes that are ready after each chunk, its number of samples and its finish reason;
        an encoder may keep the first samples for a while.
        """
        encoder = await self._run(job, job.output.stream)
        reason: FinishReason | None = None
        num_samples = 0
        async with aclosing(self._speak(job.request)) as chunks:
            async for chunk in chunks:
                reason = chunk.finish_reason
                job.timings.extend(chunk.timings)
                num_samples += len(chunk.samples)
                if len(chunk.samples):
                    data = await self._run(job, encoder.encode, chunk.samples)
                    yield data, len(chunk.samples), reason
        if reason is None or not num_samples:
            raise StageFailed("the audio ended without a finish reason or without samples")
        yield await self._run(job, encoder.finish), 0, reason

    async def _run(self, job: Job, work: Callable[..., T], *arguments: Any) -> T:
        """Call `work`, on a thread where it would hold up what else this event loop carries."""
        if not job.output.is_costly:
            return work(*arguments)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, work, *arguments)

    def _observe_first(self, job: Job) -> None:
        elapsed_s = self._clock() - job.start_s
        self._recorder.observe(metrics.TIME_TO_FIRST_AUDIO, elapsed_s, **job.labels)

    def _observe_end(
        self, job: Job, num_samples: int, reason: FinishReason | None, broke: str | None
    ) -> None:
        elapsed_s = self._clock() - job.start_s
        audio_s = job.output.seconds(num_samples)
        self._recorder.observe(metrics.REQUEST_DURATION, elapsed_s, **job.labels)
        if broke is None:
            self._recorder.observe(metrics.AUDIO_DURATION, audio_s, **job.labels)
        else:
            self._recorder.count(metrics.STREAMS_ABORTED, reason=broke)
        logger.info(
            "%s: %.2f s of %s in %.3f s, voice %s, %d characters, %s",
            job.request.request_id,
            audio_s,
            job.output.format,
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
