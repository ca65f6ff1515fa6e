"""The audio of an utterance as encoded units, measured while it is made."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np

from serve_app.audio.formats import Encoder
from serve_app.http.live.speaking import speak_arriving
from serve_app.http.live.utterance import Utterance
from serve_app.http.read_ahead import read_ahead
from serve_app.http.speech.accept import Job
from serve_app.http.speech.writer import AudioWriter, abort_reason
from serve_app.resumption import Speak
from serve_app.types import FinishReason


@dataclass(frozen=True, slots=True)
class UnitBegun:
    """The first audio of a unit is there; `start_s`: where it stands in the utterance's audio."""

    number: int
    text: str
    start_s: float


@dataclass(frozen=True, slots=True)
class UnitAudio:
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class UnitEnded:
    """`duration_s` is the length of the unit's audio, with the pause behind it."""

    number: int
    num_bytes: int
    duration_s: float
    reason: FinishReason


Event = UnitBegun | UnitAudio | UnitEnded


class LiveWriter:
    """Encodes each unit as a stream of its own, which the streams of all formats can follow.

    Args:
        writer: has the threads for encoders, and observes.
        read_ahead_s: audio that may wait for a slow reader.
    """

    def __init__(self, speak: Speak, writer: AudioWriter, read_ahead_s: float) -> None:
        self._speak = speak
        self._writer = writer
        self._read_ahead_s = read_ahead_s

    async def events(self, utterance: Utterance, whole: bool) -> AsyncGenerator[Event, None]:
        """The units of `utterance`, each begun, then its audio (`whole`: in one piece), then ended.

        Raises:
            SpeechError: it cannot go on.
        """
        job = utterance.job
        spoken = read_ahead(
            speak_arriving(self._speak, job.request, utterance, job.card.sample_rate_hz),
            round(self._read_ahead_s * job.card.sample_rate_hz),
        )
        coder = _UnitCoder(self._writer, job, whole)
        texts: list[str] = []
        observed = False
        num_samples, begun_at, num_bytes = 0, 0, 0
        reason: FinishReason | None = None
        broke: str | None = "client_gone"  # unless the end or an error is reached
        try:
            async with aclosing(spoken):
                async for piece in spoken:
                    if piece.number == len(texts):
                        texts.append(piece.text)
                        begun_at, num_bytes = num_samples, 0
                        yield UnitBegun(piece.number, piece.text, job.output.seconds(begun_at))
                    num_samples += len(piece.samples)
                    job.made.num_frames += piece.num_frames
                    job.made.note(piece.tokens)
                    job.timings.extend(() if observed else piece.timings)
                    data = await coder.code(piece.samples, ends=piece.reason is not None)
                    if data and not observed:
                        observed = True
                        self._writer.observe_first(replace(job, start_s=utterance.start_s))
                    if data:
                        num_bytes += len(data)
                        yield UnitAudio(piece.number, data)
                    if piece.reason is not None:
                        reason = "length" if reason == "length" else piece.reason
                        duration_s = job.output.seconds(num_samples - begun_at)
                        yield UnitEnded(piece.number, num_bytes, duration_s, piece.reason)
            job.made.finish_reason = reason
            broke = None
        except Exception as error:
            broke = abort_reason(error)
            raise
        finally:
            if observed:
                request = replace(job.request, text=" ".join(texts))
                ended = replace(job, request=request, start_s=utterance.start_s)
                self._writer.observe_end(ended, num_samples, reason, broke)


class _UnitCoder:
    """The encoder of one unit after the other."""

    def __init__(self, writer: AudioWriter, job: Job, whole: bool) -> None:
        self._writer = writer
        self._job = job
        self._whole = whole
        self._held: list[np.ndarray] = []
        self._encoder: Encoder | None = None

    async def code(self, samples: np.ndarray, *, ends: bool) -> bytes:
        job, writer = self._job, self._writer
        if self._whole:
            self._held.append(samples)
            if not ends:
                return b""
            whole, self._held = np.concatenate(self._held), []
            return await writer.whole(job, whole)
        encoder = self._encoder or await writer.open(job)
        self._encoder = None if ends else encoder
        data = await writer.encode(job, encoder, samples) if len(samples) else b""
        return data + await writer.finish(job, encoder) if ends else data
