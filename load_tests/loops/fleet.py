"""A load sent by several processes, so that the client is not the limit.

Each process has an event loop of its own and a share of the streams. The clock of
`time.perf_counter` is one for all processes of a machine (Linux), so that their runs merge into one
as if a single client had made it.
"""

import asyncio
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final, Self, TypeVar

from load_tests.loops.client import AudioShape, SpeechClient
from load_tests.loops.retrying import RetryingClient
from load_tests.loops.runner import (
    BurstLoop,
    ClosedLoop,
    OpenLoop,
    Plan,
    Run,
    run_burst,
    run_closed,
    run_loop,
    run_open,
)
from load_tests.loops.workload import Workload

# Until all processes have got their part of a load, which then begins in all at once.
_TAKE_OFF_S: Final = 0.5
# Requests of different processes differ, as those of one do.
_SEED_STEP: Final = 100_003

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Part:
    """What one process sends; `begin_s` is of `time.perf_counter`.

    asks_again: who is refused asks again as Retry-After says, until a closed loop's time is up.
    """

    url: str
    workload: Workload
    plan: Plan
    begin_s: float
    timeout_s: float
    asks_again: bool = False


class Fleet:
    """`size` processes that send loads together; a context manager that holds them."""

    def __init__(self, size: int, timeout_s: float = 60.0) -> None:
        self.size = size
        self._timeout_s = timeout_s

    def __enter__(self) -> Self:
        # A fresh interpreter each: a fork would copy locks of this one's threads.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(self.size, mp_context=context)
        # Each of them, so that no load waits for imports.
        list(self._pool.map(_awake, [0.3] * self.size))
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def each(self, send: Callable[[P], R], parts: Sequence[P]) -> "list[Future[R]]":
        """Have each process send one part; all are pickled."""
        return [self._pool.submit(send, part) for part in parts]

    def begin(
        self, url: str, workload: Workload, plan: Plan, *, asks_again: bool = False
    ) -> "list[Future[Run]]":
        """Start a load; `merged` waits for it."""
        begin_s = take_off_s()
        parts = [
            Part(
                url,
                replace(workload, seed=workload.seed + number * _SEED_STEP),
                part,
                begin_s,
                self._timeout_s,
                asks_again,
            )
            for number, part in enumerate(parts_of(plan, self.size))
        ]
        return self.each(_send, parts)

    def run(self, url: str, workload: Workload, plan: Plan) -> Run:
        return merged(plan, [future.result() for future in self.begin(url, workload, plan)])


def take_off_s() -> float:
    """When what is handed out now may begin."""
    return time.perf_counter() + _TAKE_OFF_S


async def until(begin_s: float) -> None:
    await asyncio.sleep(max(0.0, begin_s - time.perf_counter()))


def default_size(cores: int | None = None) -> int:
    """A client process for every four cores: what is left belongs to the server."""
    return max(1, min(16, (cores or os.cpu_count() or 1) // 4))


def parts_of(plan: Plan, size: int) -> list[Plan]:
    """`plan` in parts for `size` processes; fewer where there is less to do."""
    match plan:
        case ClosedLoop():
            size = min(size, plan.streams)
            streams = _shares(plan.streams, size)
            requests = _shares(plan.requests, size)
            return [
                replace(plan, streams=s, requests=max(s, r))
                for s, r in zip(streams, requests, strict=True)
            ]
        case OpenLoop():
            # Poisson streams added up are one of the sum of their rates.
            return [
                replace(plan, rate_hz=plan.rate_hz / size, seed=plan.seed + number * _SEED_STEP)
                for number in range(size)
            ]
        case BurstLoop():
            if plan.times != 1 or plan.beside:
                raise ValueError("bursts of several processes are sent one by one")
            return [replace(plan, size=part) for part in _shares(plan.size, min(size, plan.size))]


def merged(plan: Plan, runs: Sequence[Run]) -> Run:
    """The runs of the parts as one; its window is where all of them had theirs."""
    return Run(
        plan,
        [result for run in runs for result in run.results],
        [result for run in runs for result in run.warm_up],
        (max(run.window[0] for run in runs), min(run.window[1] for run in runs)),
        sum(run.max_in_flight for run in runs),
        [error for run in runs for error in run.clock_errors_s],
        next((run.stopped for run in runs if run.stopped), ""),
    )


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (number < total % parts) for number in range(parts)]


def _awake(seconds: float) -> None:
    """Keep a process busy for a moment, so that each gets one of these."""
    time.sleep(seconds)


def _send(part: Part) -> Run:
    return run_loop(lambda: _sent(part))


def _client(part: Part) -> SpeechClient:
    if not part.asks_again:
        return SpeechClient(part.url, AudioShape(), part.timeout_s)
    lasts_s = part.plan.max_s if isinstance(part.plan, ClosedLoop) else None
    return RetryingClient(
        part.url,
        AudioShape(),
        part.timeout_s,
        retries=sys.maxsize,
        seed=part.workload.seed,
        refused_only=True,
        until_s=math.inf if lasts_s is None else part.begin_s + lasts_s,
    )


async def _sent(part: Part) -> Run:
    async with _client(part) as client:
        await until(part.begin_s)
        run: Any
        match part.plan:
            case ClosedLoop():
                run = run_closed(client, part.workload, part.plan)
            case OpenLoop():
                run = run_open(client, part.workload, part.plan)
            case BurstLoop():
                run = run_burst(client, part.workload, part.plan)
        return await run
