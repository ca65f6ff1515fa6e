"""The loads of a sweep, one after the other."""

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from load_tests.loops.client import SpeechClient
from load_tests.loops.level import Level
from load_tests.loops.runner import (
    BurstLoop,
    ClosedLoop,
    OpenLoop,
    Plan,
    run_burst,
    run_closed,
    run_open,
)
from load_tests.loops.workload import Workload

# Past this a rate ladder ends: the server is overloaded, and higher rates only take longer to
# show it.
STOP_AT_P95_S: Final = 1.0
CLOSED_LADDER: Final = (1, 16, 64, 256)
OPEN_LADDER: Final = (5.0, 20.0, 40.0, 60.0, 80.0)
BURST_LADDER: Final = (16, 64)
MIN_CLOSED_REQUESTS: Final = 20
# Left for the answers to the last arrivals of an open loop.
_DRAIN_S: Final = 5.0


class NoTime(str):
    """A line about a level that was left out for want of time."""


@dataclass(frozen=True, slots=True)
class Ladders:
    """What a sweep runs through; `deadline_s` is of `time.perf_counter`.

    burst: before the others, on a server that nothing has kept busy yet.
    beside: streams that run beside bursts.
    seeds: an open level is run once with each; the others with the workload's own.
    """

    burst: tuple[int, ...] = BURST_LADDER
    closed: tuple[int, ...] = CLOSED_LADDER
    open: tuple[float, ...] = OPEN_LADDER
    rounds: int = 4
    bursts: int = 5
    pause_s: float = 3.0
    beside: int = 0
    duration_s: float = 15.0
    warm_up_s: float = 3.0
    seeds: tuple[int, ...] = (0,)
    deadline_s: float | None = None

    def left_s(self) -> float | None:
        return None if self.deadline_s is None else self.deadline_s - time.perf_counter()


async def climb(
    client: SpeechClient,
    workload: Workload,
    ladders: Ladders,
    done: Mapping[Plan, float] | None = None,
) -> AsyncGenerator[Level | str, None]:
    """Yield each level when it is done, and a line of text for each that is left out.

    `done` are levels of an earlier run that are not to be repeated, with their p95 of first
    playable audio in seconds; closed ones without `max_s`.
    """
    done = done or {}
    for size in ladders.burst:
        plan = BurstLoop(size, ladders.bursts, ladders.pause_s, beside=ladders.beside)
        if plan in done:
            continue
        left_s = ladders.left_s()
        if left_s is not None and left_s < plan.times * plan.pause_s + _DRAIN_S:
            yield NoTime(f"burst, {plan.label}: left out, no time")
            continue
        yield Level.of(await run_burst(client, workload, plan))
    for streams in ladders.closed:
        requests = max(MIN_CLOSED_REQUESTS, ladders.rounds * streams)
        plan = ClosedLoop(streams, requests)
        if plan in done:
            continue
        left_s = ladders.left_s()
        if left_s is not None and left_s < _DRAIN_S:
            yield NoTime(f"closed, {plan.label}: left out, no time")
            continue
        max_s = None if left_s is None else left_s - _DRAIN_S
        yield Level.of(await run_closed(client, workload, replace(plan, max_s=max_s)))
    for rate_hz in ladders.open:
        worst_s = 0.0
        for seed in ladders.seeds:
            plan = OpenLoop(rate_hz, ladders.duration_s, ladders.warm_up_s, seed)
            if plan in done:
                worst_s = max(worst_s, done[plan])
                continue
            left_s = ladders.left_s()
            if left_s is not None and left_s < plan.warm_up_s + plan.duration_s + _DRAIN_S:
                yield NoTime(f"open, {plan.label}, seed {seed}: left out, no time")
                continue
            level = Level.of(await run_open(client, replace(workload, seed=seed), plan))
            yield level
            worst_s = max(worst_s, level.summary.first_playable_s.p95)
        if not worst_s <= STOP_AT_P95_S:
            yield f"open: no higher rates, p95 of first playable audio is over {STOP_AT_P95_S:g} s"
            return
