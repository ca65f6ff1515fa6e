"""What is asked and when: request bodies and arrival times, both functions of a seed alone.

Request `i` of a workload is the same in every run, whatever the loop, the server and the number
of streams, so that two servers get the same bytes in the same order.
"""

import json
import random
from dataclasses import dataclass
from typing import Any, Final

# Everyday sentences of 60 to 75 characters: prompts of about the same length, so that the time to
# first audio does not mix short and long prefills.
TEXTS: Final = (
    "The quick brown fox jumps over the lazy dog, and then it falls asleep.",
    "Please leave your name and number, and we will call you back today.",
    "The train to the coast leaves from platform nine in twelve minutes.",
    "She opened the window and listened to the rain on the metal roof.",
    "Nobody had told the new gardener which of the roses were to be cut.",
    "Turn left at the old mill, then follow the river for half a mile.",
    "It was the kind of morning on which even the cat preferred to stay in.",
    "Your parcel has arrived and can be collected until eight this evening.",
)


@dataclass(frozen=True, slots=True)
class SpeechCall:
    """One request body and how many codec frames it must bring; None where the model decides."""

    index: int
    body: bytes
    num_frames: int | None


@dataclass(frozen=True, slots=True)
class Workload:
    """A sequence of requests.

    `min_frames` and `max_frames` are the lengths that requests are forced to, drawn uniformly from
    the range; both None leave the length to the model. `response_format` is one of the server's.
    `distinct` is after how many the requests repeat; None: never.
    """

    voice: str | None = "ryan"
    model: str | None = None
    language: str | None = "english"
    min_frames: int | None = 55
    max_frames: int | None = 55
    response_format: str = "pcm"
    seed: int = 0
    texts: tuple[str, ...] = TEXTS
    distinct: int | None = None

    def call(self, index: int, share: float = 1.0) -> SpeechCall:
        """Request `index`, cut to `share` of its length, one frame at least."""
        number = index if self.distinct is None else index % self.distinct
        draw = random.Random(f"{self.seed}/{number}")
        num_frames = None
        if self.min_frames is not None and self.max_frames is not None:
            num_frames = max(1, round(share * draw.randint(self.min_frames, self.max_frames)))
        fields: dict[str, Any] = {
            "model": self.model,
            "input": self.texts[number % len(self.texts)],
            "voice": self.voice,
            "language": self.language,
            "response_format": self.response_format,
            "stream": True,
            # One text token per frame: the shortest prefill, as for text that is still being made.
            "non_streaming_mode": False,
            "seed": draw.randrange(1 << 31),
            # Both: the maximum suffices where the end of speech is unreachable, the minimum holds
            # any other checkpoint to the length.
            "min_new_tokens": num_frames,
            "max_new_tokens": num_frames,
        }
        body = json.dumps({name: value for name, value in fields.items() if value is not None})
        return SpeechCall(index, body.encode(), num_frames)


def poisson_arrivals(rate_hz: float, duration_s: float, seed: int) -> list[float]:
    """Seconds from the start to each arrival before `duration_s`, with exponential gaps."""
    if rate_hz <= 0:
        raise ValueError(f"the rate must be positive, got {rate_hz}")
    draw = random.Random(seed)
    arrivals: list[float] = []
    at_s = draw.expovariate(rate_hz)
    while at_s < duration_s:
        arrivals.append(at_s)
        at_s += draw.expovariate(rate_hz)
    return arrivals
