"""What the runs of a curve come to; pure functions."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from load_tests.loops.client import RequestResult
from load_tests.loops.metrics import percentile
from load_tests.loops.retrying import TOO_MANY

# Throughput is back when this share of what it was before holds for `_HOLD_S`.
BACK: Final = 0.95
_HOLD_S: Final = 2.0
_STEP_S: Final = 0.25


class Received:
    """The audio of all of `results` over time, to ask for many spans at once."""

    def __init__(self, results: Sequence[RequestResult]) -> None:
        pieces = sorted(
            (result.sent_at_s + at_s, after - before)
            for result in results
            for (_, before), (at_s, after) in pairwise(((0.0, 0), *result.arrivals))
        )
        self._times = [at_s for at_s, _ in pieces]
        self._sums = [0]
        for _, size in pieces:
            self._sums.append(self._sums[-1] + size)
        self._rate_hz = results[0].shape.sample_rate_hz if results else 1

    def audio_s(self, begin_s: float, end_s: float) -> float:
        first, last = (bisect_right(self._times, at_s) for at_s in (begin_s, end_s))
        return (self._sums[last] - self._sums[first]) / (2 * self._rate_hz)


def back_after_s(
    results: Sequence[RequestResult], window: tuple[float, float], lost_at_s: float
) -> tuple[float, float | None]:
    """Audio-s/s before a loss, and the seconds after it until that is made again.

    None: it never was within the window.
    """
    received = Received(results)
    before_s = lost_at_s - window[0]
    if before_s <= 0:
        return math.nan, None
    usual = received.audio_s(window[0], lost_at_s) / before_s
    at_s = lost_at_s
    while at_s + _HOLD_S <= window[1]:
        if received.audio_s(at_s, at_s + _HOLD_S) >= BACK * usual * _HOLD_S:
            return usual, at_s - lost_at_s
        at_s += _STEP_S
    return usual, None


@dataclass(frozen=True, slots=True)
class Refusals:
    """What a load whose clients ask again met at a full server.

    refusals: answers that there was no room.
    asked_again: requests that were let in after one or more of them.
    given_up: requests that were not let in until the load was over.
    wait_p95_s: from the first attempt of one that was let in later to the attempt that was; nan
        where there is none.
    """

    refusals: int
    asked_again: int
    given_up: int
    wait_p95_s: float


def refused_apart(
    results: Sequence[RequestResult],
) -> tuple[list[RequestResult], Refusals]:
    """Those that were let in, whatever became of them, and what the others were told.

    Who is refused has lost nothing but the time: that is no failure of the server.
    """
    let_in = [result for result in results if result.status != TOO_MANY]
    later = [result.waited_s for result in let_in if result.refusals_s]
    return let_in, Refusals(
        refusals=sum(max(len(r.refusals_s), r.status == TOO_MANY) for r in results),
        asked_again=len(later),
        given_up=len(results) - len(let_in),
        wait_p95_s=percentile(later, 0.95),
    )


def efficiency(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each closed row beside the one of a single GPU of the same placement and load.

    share: of `gpus` times what one made. p95_ratio: first audio against one GPU's.
    """
    one = {(r["placement"], r["load"]): r for r in rows if r["gpus"] == 1}
    found = []
    for row in rows:
        base = one.get((row["placement"], row["load"]))
        if base is None or not row["load"].startswith("closed"):
            continue
        found.append(
            {
                "placement": row["placement"],
                "load": row["load"],
                "gpus": row["gpus"],
                "share": _over(row["audio_s_per_s"], row["gpus"] * base["audio_s_per_s"]),
                "p95_ratio": _over(row["first_p95_s"], base["first_p95_s"]),
            }
        )
    return found


def withheld(row: Mapping[str, Any]) -> tuple[float, float] | None:
    """Cores that the host gave to others while they were wanted here, and those that were wanted;
    None where that was not seen.
    """
    machine = ((row.get("beside") or {}).get("busy") or {}).get("machine", {})
    busy, stolen = machine.get("busy"), machine.get("stolen")
    if busy is None or stolen is None or busy + stolen <= 0:
        return None
    return stolen, busy + stolen


def _over(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
