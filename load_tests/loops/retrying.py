"""A client that asks again as OpenAI's do, and what came of a load of such clients."""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from load_tests.loops.client import EAGER, Manner, RequestResult, SpeechClient
from load_tests.loops.metrics import percentile
from load_tests.loops.workload import SpeechCall

# As openai-python has it: what is asked again, for how long at most it does what Retry-After says,
# and how long it waits by itself, which doubles.
_AGAIN: Final = frozenset((408, 409, 429))
_SERVER_ERROR: Final = 500
_LONGEST_TOLD_S: Final = 60.0
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 8.0
_JITTER: Final = 0.25
# There was no room.
TOO_MANY: Final = 429


class RetryingClient(SpeechClient):
    """A `SpeechClient` that asks up to `retries` times more; times count from the first attempt.

    Args:
        refused_only: only where there was no room; what fails otherwise has failed.
        until_s: by the client's clock, from when on nobody asks again.
    """

    def __init__(
        self,
        *client: object,
        retries: int,
        seed: int = 0,
        refused_only: bool = False,
        until_s: float = math.inf,
        **options: object,
    ) -> None:
        super().__init__(*client, **options)  # pyright: ignore[reportArgumentType]
        self._retries = retries
        self._refused_only = refused_only
        self._until_s = until_s
        self._draw = random.Random(f"retries/{seed}")

    async def speak(
        self,
        call: SpeechCall,
        scheduled_at_s: float | None = None,
        manner: Manner = EAGER,
        sink: bytearray | None = None,
    ) -> RequestResult:
        attempts: list[RequestResult] = []
        while True:
            result = await super().speak(call, scheduled_at_s, manner, sink)
            attempts.append(result)
            if len(attempts) > self._retries or not self._is_asked_again(result):
                return joined(attempts)
            # Also before it gives up: a closed loop would send the next request at once.
            await asyncio.sleep(self._wait_s(result, len(attempts) - 1))
            if self._clock() > self._until_s:
                return joined(attempts)

    def _is_asked_again(self, result: RequestResult) -> bool:
        if self._refused_only:
            return result.status == TOO_MANY
        return _is_asked_again(result)

    def _wait_s(self, result: RequestResult, retries: int) -> float:
        told_s = result.retry_after_s
        if told_s is not None and 0 < told_s <= _LONGEST_TOLD_S:
            return told_s
        wait_s = min(_FIRST_WAIT_S * 2**retries, _LONGEST_WAIT_S)
        return wait_s * (1 - _JITTER * self._draw.random())


def _is_asked_again(result: RequestResult) -> bool:
    if result.error == "connection":
        return True
    return result.status in _AGAIN or result.status >= _SERVER_ERROR


def joined(attempts: Sequence[RequestResult]) -> RequestResult:
    """The attempts at one request as one: the last one's answer, since the first was sent."""
    first, last = attempts[0], attempts[-1]
    later_s = last.sent_at_s - first.sent_at_s
    return replace(
        last,
        scheduled_at_s=first.scheduled_at_s,
        sent_at_s=first.sent_at_s,
        end_s=later_s + last.end_s,
        arrivals=tuple((later_s + at_s, total) for at_s, total in last.arrivals),
        waited_s=later_s,
        refusals_s=tuple(each.end_s for each in attempts if each.status == TOO_MANY),
    )


@dataclass(frozen=True, slots=True)
class Retried:
    """What clients that ask again got; seconds, nan where there is none.

    complete: requests, by how often they had been refused before.
    given_up: requests whose last attempt was refused as well.
    first_s: p50 and p95 of first playable audio of complete requests, since the first attempt; of
        that which was let in: `let_in_s`.
    refusals_s: p50 and p95 of how soon an attempt was refused.
    span_s: from the first request to the end of the last.
    """

    requests: int
    complete: dict[int, int]
    given_up: int
    refusals: int
    first_s: tuple[float, float]
    let_in_s: tuple[float, float]
    refusals_s: tuple[float, float]
    span_s: float

    @property
    def text(self) -> str:
        refused = [f"{n} after {again} refusals" for again, n in self.complete.items() if again]
        other = self.requests - sum(self.complete.values()) - self.given_up
        return (
            f"of {self.requests} requests {sum(self.complete.values())} complete"
            f" ({', '.join([f'{self.complete.get(0, 0)} at once', *refused])}),"
            f" {self.given_up} given up{f', {other} failed' if other else ''};"
            f" {self.refusals} refusals, answered within {_ms(self.refusals_s)} ms (p50 / p95);"
            f" first playable of the complete {_ms(self.first_s)} ms since the first attempt,"
            f" {_ms(self.let_in_s)} since the last; all took {self.span_s:.1f} s"
        )


def retried(results: Sequence[RequestResult]) -> Retried:
    good = [result for result in results if result.ok]
    refusals = [seconds for result in results for seconds in result.refusals_s]
    firsts = [result.first_playable_s or 0.0 for result in good]
    let_in = [f - result.waited_s for f, result in zip(firsts, good, strict=True)]
    begins = [result.sent_at_s for result in results]
    ends = [result.sent_at_s + result.end_s for result in results]
    return Retried(
        requests=len(results),
        complete=dict(sorted(Counter(len(result.refusals_s) for result in good).items())),
        given_up=sum(result.status == TOO_MANY for result in results),
        refusals=len(refusals),
        first_s=_p50_p95(firsts),
        let_in_s=_p50_p95(let_in),
        refusals_s=_p50_p95(refusals),
        span_s=max(ends, default=0.0) - min(begins, default=0.0),
    )


def _p50_p95(values: Sequence[float]) -> tuple[float, float]:
    return percentile(values, 0.5), percentile(values, 0.95)


def _ms(pair: tuple[float, float]) -> str:
    return " / ".join("-" if seconds != seconds else f"{1000 * seconds:,.0f}" for seconds in pair)
