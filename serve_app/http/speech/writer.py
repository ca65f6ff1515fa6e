"""The audio of one request as the bytes of a response body, measured while it is made."""

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, Final, TypeVar

import numpy as np

from serve_app import metrics
from serve_app.audio.formats import Encoder
from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.http.observe.audio import AudioObserver
from serve_app.http.read_ahead import read_ahead
from serve_app.http.response import ReaderStalled
from serve_app.http.speech.accept import Job
from serve_app.pipeline import join
from serve_app.resumption import Speak
from serve_app.types import FinishReason, PcmChunk

T = TypeVar("T")

# FFmpeg's encoders let go of Python's lock while they work, but take it again for every packet:
# with eight threads, on an H100's host with 64 streams, a call of 4 ms took 60, and each thread
# worked for a seventh of its time.
_THREADS: Final = min(3, os.cpu_count() or 1)
# What takes less is done by the event loop: to hand it to a thread and get it back takes a tenth of
# a millisecond, and several where other threads have Python's lock.
_AT_ONCE_S: Final = 0.0006
# The audio that an encoder may still hold at the end.
_HELD_S: Final = 0.1
_FILE_THREADS: Final = min(4, os.cpu_count() or 1)
logger = logging.getLogger(__name__)


class AudioCut(Exception):
    """Leaves the application in the middle of a body, which makes the server drop the connection.

    Raised only after the first byte, where no exception handler can answer any more.
    """


class AudioWriter:
    """Writes the audio of a job, whole or piece by piece."""

    def __init__(
        self,
        speak: Speak,
        read_ahead_s: float,
        recorder: metrics.Recorder,
        clock: Callable[[], float],
    ) -> None:
        self._speak = speak
        self._read_ahead_s = read_ahead_s
        self._observer = AudioObserver(recorder, clock)
        self._clock = clock
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="encoder")
        # A whole file may take seconds, and a stream's next chunk must not wait for it.
        self._file_pool = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="file-encoder")

    async def file(self, job: Job) -> tuple[bytes, FinishReason]:
        async with aclosing(job.chunks(self._speak)) as chunks:
            whole = await join(chunks)
        if not len(whole.samples) or whole.finish_reason is None:
            raise StageFailed("the model made no audio")
        check_position(whole, 0)
        job.timings.extend(whole.timings)
        job.made.num_samples, job.made.num_frames = len(whole.samples), len(whole.codes)
        job.made.note(whole.tokens)
        job.made.finish_reason = whole.finish_reason
        data = await self.whole(job, whole.samples)
        self.observe_first(job)
        self.observe_end(job, len(whole.samples), whole.finish_reason, None)
        return data, whole.finish_reason

    async def pieces(self, job: Job) -> AsyncGenerator[bytes, None]:
        """Yield the body piece by piece, each with audio in it.

        Raises:
            SpeechError: before the first piece.
            AudioCut: after it.
        """
        rate_hz = job.card.sample_rate_hz
        num_samples, begun = 0, False
        reason: FinishReason | None = None
        broke: str | None = "client_gone"  # unless the end or an error is reached
        heard = self._observer.heard(job, job.chunks(self._speak))
        chunks = read_ahead(heard, round(self._read_ahead_s * rate_hz))
        opening: asyncio.Task[Encoder] | None = None
        encoder: Encoder | None = None
        if job.output.is_costly:
            # Beside the first audio: opening such an encoder takes milliseconds.
            opening = asyncio.create_task(self.open(job))
        else:
            encoder = job.output.stream()
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    check_position(chunk, num_samples)
                    num_samples += len(chunk.samples)
                    job.made.num_samples = num_samples
                    job.made.num_frames += len(chunk.codes)
                    job.made.finish_reason = reason = chunk.finish_reason
                    job.made.note(chunk.tokens)
                    job.timings.extend(chunk.timings)
                    if not len(chunk.samples):
                        continue
                    if encoder is None:
                        assert opening is not None
                        encoder = await opening
                    # An encoder may keep the first samples for a while.
                    data = await self.encode(job, encoder, chunk.samples)
                    if data and not begun:
                        self.observe_first(job)
                        begun = True
                    if data:
                        yield data
            if reason is None or not num_samples or encoder is None:
                raise StageFailed("the audio ended without a finish reason or without samples")
            tail = await self.finish(job, encoder)
            if tail and not begun:
                self.observe_first(job)
                begun = True
            if tail:
                yield tail
            broke = None
        except Exception as error:
            broke = abort_reason(error)
            if not begun:
                raise
            raise AudioCut(f"{job.request.request_id}: {error}") from error
        finally:
            if opening is not None:
                opening.cancel()
            if begun:
                self.observe_end(job, num_samples, reason, broke)

    async def open(self, job: Job) -> Encoder:
        """The encoder of a stream; the work is where it holds up nothing else of the event loop."""
        if not job.output.is_costly:
            return job.output.stream()
        return await self._on(self._pool, job, job.output.stream)

    async def encode(self, job: Job, encoder: Encoder, samples: np.ndarray) -> bytes:
        """`encoder.encode(samples)`, as `open`."""
        return await self._do(job, len(samples), encoder.encode, samples)

    async def finish(self, job: Job, encoder: Encoder) -> bytes:
        """`encoder.finish()`, as `open`."""
        held = round(_HELD_S * job.output.model_hz)
        return await self._do(job, held, encoder.finish)

    async def whole(self, job: Job, samples: np.ndarray) -> bytes:
        """A file of `samples`, whatever its format."""
        return await self._on(self._file_pool, job, job.output.file, samples)

    async def _do(
        self, job: Job, num_samples: int, work: Callable[..., bytes], *arguments: Any
    ) -> bytes:
        if job.output.work_s(num_samples) > _AT_ONCE_S:
            return await self._on(self._pool, job, work, *arguments)
        start_s = self._clock()
        data = work(*arguments)
        job.made.encode_s += self._clock() - start_s
        return data

    async def _on(
        self, pool: ThreadPoolExecutor, job: Job, work: Callable[..., T], *arguments: Any
    ) -> T:
        loop, start_s = asyncio.get_running_loop(), self._clock()
        result = await loop.run_in_executor(pool, work, *arguments)
        job.made.encode_s += self._clock() - start_s
        return result

    def observe_first(self, job: Job) -> None:
        self._observer.first(job)

    def observe_end(
        self, job: Job, num_samples: int, reason: FinishReason | None, broke: str | None
    ) -> None:
        self._observer.end(job, num_samples, reason, broke)
        if broke is None and reason == "length" and job.request.max_new_tokens is None:
            # Nobody asked for less: only events have a place left where a client could read this.
            logger.warning("%s: no room for all of the text", job.request.request_id)


def check_position(chunk: PcmChunk, num_samples: int) -> None:
    """No sample is missing and none is there twice, whoever made the chunks."""
    if chunk.first_sample != num_samples:
        raise StageFailed(f"audio goes on at sample {chunk.first_sample}, not {num_samples}")


def abort_reason(error: Exception) -> str:
    match error:
        case ReaderStalled():
            return "client_stalled"
        case StageUnavailable():
            return "stage_unavailable"
        case StageFailed():
            return "stage_failed"
        case Overloaded():
            return "overloaded"
        case _:
            return "other"
