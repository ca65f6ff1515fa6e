"""The units of an utterance, spoken one after the other while its text still comes in.

As in `speech/joining.py`: the next unit is asked for when the last frame of the one before is
there, or when its text is whole, if that is later. The pause behind a unit is sent at its end, so
that it costs no time where the text is late.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from serve_app.errors import StageFailed
from serve_app.http.live.utterance import Arrived
from serve_app.http.speech.joining import Listener, Shape, Started
from serve_app.http.speech.writer import check_position
from serve_app.resumption import Speak
from serve_app.types import FinishReason, InputTokens, SpeechRequest


class Units(Protocol):
    """What `Utterance` gives out."""

    @property
    def is_over(self) -> bool: ...

    async def next(self) -> Arrived | None: ...

    def next_now(self) -> Arrived | None: ...


@dataclass(frozen=True, slots=True)
class Spoken:
    """Consecutive samples (int16 [N]) of a unit; `reason` is set on the last piece of it."""

    number: int
    text: str
    samples: np.ndarray
    num_frames: int
    reason: FinishReason | None = None
    timings: tuple[tuple[str, float], ...] = ()
    tokens: InputTokens | None = None


async def speak_arriving(
    speak: Speak, request: SpeechRequest, units: Units, sample_rate_hz: int
) -> AsyncGenerator[Spoken, None]:
    """The audio of `units`, with the voice and the settings of `request`, whose text is not used.

    Limits of tokens hold for each unit.
    """

    listener = Listener(sample_rate_hz)

    def begin(arrived: Arrived, number: int, coming: int = 0) -> Started:
        """`coming`: samples that are about to be sent."""
        asked = replace(
            request,
            request_id=f"{request.request_id}.{number}",
            text=arrived.unit.text,
            ahead_s=listener.ahead_s(coming) if number else None,
        )
        return Started(speak(asked))

    def silence(seconds: float) -> np.ndarray:
        return np.zeros(round(seconds * sample_rate_hz), np.int16)

    number = 0
    arrived = await units.next()
    current: Started | None = None
    upcoming: Started | None = None
    try:
        while arrived is not None:
            current, upcoming = upcoming or begin(arrived, number), None
            unit, following = arrived.unit, None
            shape = Shape(unit, sample_rate_hz, number > 0, fades_out=True)
            reason: FinishReason | None = None
            num_samples, before = 0, silence(unit.pause_before_s)
            async with aclosing(current.chunks()) as chunks:
                async for chunk in chunks:
                    check_position(chunk, num_samples)
                    num_samples += len(chunk.samples)
                    if chunk.finish_reason is not None:
                        reason = chunk.finish_reason
                        following = units.next_now()
                        if following is not None:
                            upcoming = begin(following, number + 1, len(chunk.samples))
                    samples = np.concatenate([before, shape.shaped(chunk.samples)])
                    before = before[:0]
                    listener.sent(len(samples))
                    yield Spoken(
                        number,
                        unit.text,
                        samples,
                        len(chunk.codes),
                        timings=chunk.timings,
                        tokens=chunk.tokens,
                    )
            if reason is None or not num_samples:
                raise StageFailed("a unit ended without a finish reason or without samples")
            following = following or units.next_now()
            gap_s = 0.0 if following is None and units.is_over else arrived.gap_s
            after = silence(unit.pause_after_s + gap_s)
            rest = np.concatenate([shape.finish(), after])
            listener.sent(len(rest))
            yield Spoken(number, unit.text, rest, 0, reason)
            await current.aclose()
            arrived, number = following or await units.next(), number + 1
    finally:
        for started in (current, upcoming):
            if started is not None:
                await started.aclose()
