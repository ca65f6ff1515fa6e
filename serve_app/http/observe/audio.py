"""What is measured and logged of the audio of one job."""

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from serve_app import metrics
from serve_app.http.observe import log
from serve_app.http.observe.record import Record, current, is_within_request
from serve_app.http.speech.accept import Job
from serve_app.types import REPLICA_WAIT, TALKER_QUEUE, FinishReason, PcmChunk


class AudioObserver:
    """Records the audio in metrics and in the record of the request.

    A request has one line in the log. Audio that is one of many, of a WebSocket or of a job in the
    background, has one of its own.
    """

    def __init__(
        self, recorder: metrics.Recorder, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._recorder = recorder
        self._clock = clock

    def first(self, job: Job) -> None:
        """The first byte is handed on."""
        elapsed_s = self._clock() - job.start_s
        self._recorder.observe(metrics.TIME_TO_FIRST_AUDIO, elapsed_s, **job.labels)
        for part, seconds in job.timings:
            if part in (REPLICA_WAIT, TALKER_QUEUE):
                self._recorder.observe(metrics.REQUEST_QUEUE, seconds, at=part)
        record = current()
        record.first_audio_s = elapsed_s
        record.timings = tuple(job.timings)

    def end(
        self, job: Job, num_samples: int, reason: FinishReason | None, broke: str | None
    ) -> None:
        """The audio is over, complete or not."""
        elapsed_s = self._clock() - job.start_s
        audio_s = job.output.seconds(num_samples)
        record, recorder = current(), self._recorder
        recorder.observe(metrics.REQUEST_DURATION, elapsed_s, **job.labels)
        if broke is None:
            recorder.observe(metrics.AUDIO_DURATION, audio_s, **job.labels)
            recorder.observe(metrics.AUDIO_RTF, elapsed_s / audio_s, **job.labels)
            recorder.count(metrics.FINISHED, reason=str(reason))
        else:
            recorder.count(metrics.STREAMS_ABORTED, reason=broke)
        recorder.add(metrics.AUDIO_SECONDS, audio_s, **job.labels)
        recorder.add(metrics.CODEC_FRAMES, job.made.num_frames)
        recorder.add(metrics.INPUT_CHARACTERS, len(job.request.text))
        if job.output.is_costly:
            recorder.observe(metrics.ENCODE, job.made.encode_s, format=job.output.format)
        made = _with_audio(record, job, audio_s, reason, broke)
        if not is_within_request() or record.method == "WS":
            log.write(replace(made, request_id=job.request.request_id), elapsed_s)
        for name in ("model", "voice", "language", "format", "transport", "finish_reason"):
            setattr(record, name, getattr(made, name))
        record.broke = broke or record.broke
        record.characters += len(job.request.text)
        record.audio_s += audio_s

    async def heard(
        self, job: Job, chunks: AsyncGenerator[PcmChunk, None]
    ) -> AsyncGenerator[PcmChunk, None]:
        """Pass on `chunks`, and measure what a listener who plays them at once would miss."""
        rate_hz = job.card.sample_rate_hz
        ends_s: float | None = None
        missed_s = 0.0
        async with aclosing(chunks):
            async for chunk in chunks:
                if len(chunk.samples):
                    now_s = self._clock()
                    late_s = 0.0 if ends_s is None else max(0.0, now_s - ends_s)
                    missed_s += late_s
                    begin_s = now_s if ends_s is None else ends_s + late_s
                    ends_s = begin_s + len(chunk.samples) / rate_hz
                yield chunk
        self._recorder.observe(metrics.STREAM_UNDERRUN, missed_s, transport=job.transport)


def _with_audio(
    record: Record, job: Job, audio_s: float, reason: FinishReason | None, broke: str | None
) -> Record:
    """The record of this audio alone."""
    request = job.request
    return replace(
        record,
        model=request.model,
        voice=None if request.voice is None else str(request.voice),
        language=request.language,
        format=job.output.format,
        transport=job.transport,
        characters=len(request.text),
        audio_s=audio_s,
        finish_reason=reason,
        broke=broke,
    )
