"""The units of a script, spoken one after the other as one stream.

Unit n + 1 is asked for when the last frame of unit n is there, before that is handed on: while its
first audio is made, the listener still has what came before, and the stages are told how much.
Where two units meet, a few milliseconds are faded, so that no step in the waveform clicks; no
sample is left out.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from serve_app.audio.filters import PcmFilter
from serve_app.errors import StageFailed
from serve_app.pipeline import join
from serve_app.resumption import Speak
from serve_app.text.script import Unit
from serve_app.types import FinishReason, PcmChunk, SpeechRequest

_FADE_S: Final = 0.005
# Silence goes out in pieces, as audio does.
_SILENCE_PIECE_S: Final = 0.5


def speak_units(
    speak: Speak, request: SpeechRequest, units: Sequence[Unit], sample_rate_hz: int
) -> AsyncGenerator[PcmChunk, None]:
    """The audio of `units`, with the voice and the settings of `request`, whose text is not used.

    A stated `max_new_tokens` limits all units together; of `min_new_tokens` the last one makes up
    what those before it lack.
    A pause before the first unit is sent when there is audio to follow it.
    """
    if len(units) == 1 and units[0] == Unit(units[0].text):
        return speak(replace(request, text=units[0].text))
    return _joined(speak, request, units, sample_rate_hz)


async def _joined(
    speak: Speak, request: SpeechRequest, units: Sequence[Unit], sample_rate_hz: int
) -> AsyncGenerator[PcmChunk, None]:
    out = _Joined(sample_rate_hz, Listener(sample_rate_hz))
    num_frames = 0
    current = Started(speak(_request(request, units, 0, num_frames)))
    upcoming: Started | None = None
    try:
        for number, unit in enumerate(units):
            is_last = number == len(units) - 1
            shape = Shape(unit, sample_rate_hz, number > 0, not is_last)
            silent_s = unit.pause_before_s
            has_ended = False
            async with aclosing(current.chunks()) as chunks:
                async for chunk in chunks:
                    num_frames += len(chunk.codes)
                    if chunk.finish_reason is not None:
                        has_ended = True
                        out.reason = "length" if out.reason == "length" else chunk.finish_reason
                        if request.ends_at(num_frames) and not is_last:
                            out.reason = "length"  # the other units are not spoken
                        elif not is_last:
                            ahead_s = out.listener.ahead_s(len(chunk.samples))
                            following = _request(request, units, number + 1, num_frames)
                            upcoming = Started(speak(replace(following, ahead_s=ahead_s)))
                    for silence in out.silence(silent_s, chunk):
                        yield silence
                    silent_s = 0.0
                    yield out.next(shape.shaped(chunk.samples), chunk)
            if not has_ended:
                return  # without a finish reason, which says that something is missing
            yield out.next(shape.finish())
            for silence in out.silence(unit.pause_after_s):
                yield silence
            if upcoming is None:
                break
            current, upcoming = upcoming, None
        yield replace(out.next(np.zeros(0, np.int16)), finish_reason=out.reason)
    finally:
        await current.aclose()
        if upcoming is not None:
            await upcoming.aclose()


def _request(
    request: SpeechRequest, units: Sequence[Unit], number: int, num_frames: int
) -> SpeechRequest:
    """What is asked for unit `number`, once those before it have had `num_frames` frames."""
    most, least = request.max_new_tokens, request.min_new_tokens
    is_last = number == len(units) - 1
    return replace(
        request,
        request_id=f"{request.request_id}.{number}" if number else request.request_id,
        text=units[number].text,
        max_new_tokens=None if most is None else most - num_frames,
        min_new_tokens=max(0, least - num_frames) if is_last and least is not None else None,
    )


async def speak_unit(
    speak: Speak, request: SpeechRequest, units: Sequence[Unit], number: int, sample_rate_hz: int
) -> tuple[np.ndarray, FinishReason]:
    """One of `units` by itself: its part of `speak_units`, sample by sample, and why it ended.

    For requests without limits of tokens, which all units would have to share.

    Raises:
        StageFailed: it has no samples, a gap, or no end.
    """
    unit, is_last = units[number], number == len(units) - 1
    async with aclosing(speak(_request(request, units, number, 0))) as chunks:
        whole = await join(chunks)
    if whole.finish_reason is None or not len(whole.samples) or whole.first_sample:
        raise StageFailed(f"{request.request_id}: unit {number} has no audio")
    shape = Shape(unit, sample_rate_hz, number > 0, not is_last)
    before, after = (
        np.zeros(round(seconds * sample_rate_hz), np.int16)
        for seconds in (unit.pause_before_s, unit.pause_after_s)
    )

    def shaped() -> np.ndarray:
        return np.concatenate([before, shape.shaped(whole.samples), shape.finish(), after])

    # With a rate of its own that is a tenth of a second of work for a minute of speech.
    made = shaped() if unit.rate == 1 else await asyncio.to_thread(shaped)
    return made, whole.finish_reason


class Started:
    """A stream whose first chunk is being made."""

    def __init__(self, chunks: AsyncGenerator[PcmChunk, None]) -> None:
        self._chunks = chunks
        self._first = asyncio.ensure_future(_first(chunks))

    async def chunks(self) -> AsyncGenerator[PcmChunk, None]:
        first = await self._first
        if first is None:
            return
        yield first
        async for chunk in self._chunks:
            yield chunk

    async def aclose(self) -> None:
        self._first.cancel()
        await asyncio.gather(self._first, return_exceptions=True)
        await self._chunks.aclose()


async def _first(chunks: AsyncGenerator[PcmChunk, None]) -> PcmChunk | None:
    return await anext(chunks, None)


class Listener:
    """One who plays at once whatever is sent."""

    def __init__(self, sample_rate_hz: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_hz = sample_rate_hz
        self._clock = clock
        self._ends_s = float("-inf")

    def sent(self, num_samples: int) -> None:
        self._ends_s = self._clock() + self.ahead_s(num_samples)

    def ahead_s(self, num_samples: int) -> float:
        """Seconds that are left to hear, with `num_samples` that are about to be sent."""
        return max(0.0, self._ends_s - self._clock()) + num_samples / self._rate_hz


@dataclass
class _Joined:
    """What has been sent of the joined stream."""

    sample_rate_hz: int
    listener: Listener
    num_samples: int = 0
    no_codes: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    reason: FinishReason | None = None

    def next(self, samples: np.ndarray, source: PcmChunk | None = None) -> PcmChunk:
        """`samples` as the next chunk; its codes, timings and tokens are those of `source`."""
        if source is not None:
            self.no_codes = source.codes[:0]
        codes = self.no_codes if source is None else source.codes
        timings = () if source is None or self.num_samples else source.timings
        tokens = None if source is None else source.tokens
        chunk = PcmChunk(samples, self.num_samples, codes, None, timings, tokens)
        self.num_samples += len(samples)
        self.listener.sent(len(samples))
        return chunk

    def silence(self, seconds: float, source: PcmChunk | None = None) -> Iterator[PcmChunk]:
        left = round(seconds * self.sample_rate_hz)
        piece = round(_SILENCE_PIECE_S * self.sample_rate_hz)
        while left > 0:
            chunk = self.next(np.zeros(min(left, piece), np.int16), source)
            # Codes and tokens belong to the audio that follows.
            yield replace(chunk, codes=self.no_codes, tokens=None)
            left -= piece


class Shape:
    """The samples of a unit: at its rate, with its ends faded where another unit is."""

    def __init__(self, unit: Unit, sample_rate_hz: int, fades_in: bool, fades_out: bool) -> None:
        rate = (sample_rate_hz, sample_rate_hz, unit.rate)
        self._filter = PcmFilter(*rate) if unit.rate != 1 else None
        self._ramp = np.linspace(0, 1, round(_FADE_S * sample_rate_hz), dtype=np.float32)
        self._fades_in = fades_in
        self._held: np.ndarray | None = np.zeros(0, np.int16) if fades_out else None

    def shaped(self, samples: np.ndarray) -> np.ndarray:
        return self._send(samples if self._filter is None else self._filter.filter(samples))

    def finish(self) -> np.ndarray:
        rest = np.zeros(0, np.int16) if self._filter is None else self._filter.finish()
        samples = self._send(rest)
        if self._held is None:
            return samples
        return np.concatenate([samples, _faded(self._held, self._ramp[::-1], at_end=True)])

    def _send(self, samples: np.ndarray) -> np.ndarray:
        """`samples` behind what was held back, but for as many as a fade at the end takes."""
        if self._fades_in and len(samples):
            self._fades_in = False
            samples = _faded(samples, self._ramp)
        if self._held is None:
            return samples
        samples = np.concatenate([self._held, samples])
        cut = max(0, len(samples) - len(self._ramp))
        self._held = samples[cut:]
        return samples[:cut]


def _faded(samples: np.ndarray, ramp: np.ndarray, *, at_end: bool = False) -> np.ndarray:
    """int16 [N] with `ramp` applied to its beginning or end."""
    faded = samples.copy()
    length = min(len(faded), len(ramp))
    part = slice(len(faded) - length, None) if at_end else slice(0, length)
    used = ramp[len(ramp) - length :] if at_end else ramp[:length]
    faded[part] = np.rint(faded[part] * used).astype(np.int16)
    return faded
