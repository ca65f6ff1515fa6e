"""Clients that a server should not mind: they read slowly or hang up, in every format."""

import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from load_tests.loops.client import AudioShape, Manner, RequestResult, SpeechClient
from load_tests.loops.workload import Workload

Kind = Literal["slow", "vanishing"]
# Bytes per second of audio, about: how fast a body is read that is heard while it comes.
BYTES_PER_S: Final = {
    "pcm": 48_000,
    "wav": 48_000,
    "flac": 24_000,
    "mp3": 12_000,
    "aac": 12_000,
    "opus": 6_000,
}
FORMATS: Final = tuple(BYTES_PER_S)
# Small buffers of their own, so that it is the server that has to wait.
_SMALL_BUFFERS: Final = 4096
_TIMEOUT_S: Final = 300.0
_LEAVES_S: Final = (0.0, 2.0)
_STALLS_S: Final = (2.0, 20.0)
# Until the next request. Who hangs up after a second on average and came back at once would ask for
# far more speech than the slow ones: a load of its own, and not a matter of hanging up.
_PAUSES_S: Final = {"slow": (0.0, 1.0), "vanishing": (0.0, 8.0)}


@dataclass(slots=True)
class Crowd:
    """`size` clients of each kind on one server, until it is told to stop.

    fates: how often what became of a request, by (kind, format, fate): complete, left, refused, or
        failed; failed is what the client did not choose.
    first_failure: what the first of them said.
    """

    url: str
    workload: Workload
    size: int
    seed: int = 0
    fates: Counter[tuple[Kind, str, str]] = field(default_factory=Counter)
    first_failure: str = ""

    async def run(self, seconds: float) -> None:
        """Have all of them at it for so long; who is still reading then hangs up."""
        end_s = time.perf_counter() + seconds
        async with SpeechClient(
            self.url, AudioShape(), _TIMEOUT_S, buffer_bytes=_SMALL_BUFFERS
        ) as client:
            tasks = [
                asyncio.create_task(self._client(client, kind, number, end_s))
                for kind in ("slow", "vanishing")
                for number in range(self.size)
            ]
            try:
                await asyncio.wait(tasks, timeout=seconds)
            finally:
                for task in tasks:
                    task.cancel()
                ends = await asyncio.gather(*tasks, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception):
                    raise end

    async def _client(self, client: SpeechClient, kind: Kind, number: int, end_s: float) -> None:
        draw = random.Random(f"{kind}/{self.seed}/{number}")
        turn = 0
        # Not all at the same moment: that would be a burst, which is another test.
        await asyncio.sleep(draw.uniform(0.0, 2.0))
        while time.perf_counter() < end_s:
            form = FORMATS[(number + turn) % len(FORMATS)]
            call = replace(self.workload, response_format=form).call(number + turn * self.size)
            result = await client.speak(call, manner=manner(kind, number, form, draw))
            fate = fate_of(result)
            self.fates[kind, form, fate] += 1
            if fate == "failed":
                self.first_failure = self.first_failure or f"{kind}, {form}: {result.detail}"
            turn += 1
            await asyncio.sleep(result.retry_after_s or draw.uniform(*_PAUSES_S[kind]))


def manner(kind: Kind, number: int, form: str, draw: random.Random) -> Manner:
    """A third of the slow ones listens, a third at a quarter of that speed, a third stops."""
    if kind == "vanishing":
        return Manner(leave_after_s=draw.uniform(*_LEAVES_S))
    if number % 3 == 2:
        return Manner(stall_s=draw.uniform(*_STALLS_S))
    # `Manner` counts samples of 2 bytes at 24 kHz.
    listening = BYTES_PER_S[form] / BYTES_PER_S["pcm"]
    return Manner(speed=listening if number % 3 == 0 else listening / 4)


def fate_of(result: RequestResult) -> str:
    # A compressed body has no whole frames of samples.
    if result.ok or (result.error == "length" and result.num_bytes):
        return "complete"
    if result.error == "left":
        return "left"
    return "refused" if result.status in (429, 503) else "failed"
