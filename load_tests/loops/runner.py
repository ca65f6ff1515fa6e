"""The three loops that send a workload, and what they observed.

closed: `streams` clients, each sends its next request when its last one has ended. Shows how much
    a server makes when it is kept busy; a slow server is asked for less, which flatters its delays.
open: requests leave at Poisson times, whatever became of the ones before. Shows the delays that
    independent users see at a rate; past what the server can do, they grow without bound.
burst: requests leave all at the same moment, again and again, with silence in between. Shows what
    a server that was idle makes of it, which neither of the others does.
"""

import asyncio
import gc
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from load_tests.loops.client import RequestResult, SpeechClient
from load_tests.loops.workload import Workload, poisson_arrivals

_PROBE_PERIOD_S: Final = 0.01
# Warm-up requests are numbered from here, so that the measured ones are 0, 1, 2 ... in every run.
_WARM_UP_INDEX: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """`streams` requests in flight until `requests` were sent.

    Before them each stream makes `warm_up` unmeasured requests. The first of these is cut to a part
    of the length that differs from stream to stream, so that the streams do not run in step:
    all asking for their first audio at once is not a load that exists.
    """

    streams: int
    requests: int
    warm_up: int = 1
    max_s: float | None = None

    @property
    def label(self) -> str:
        return f"{self.streams} streams" if self.streams > 1 else "1 stream"


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Poisson arrivals at `rate_hz`, `warm_up_s` seconds unmeasured and `duration_s` measured."""

    rate_hz: float
    duration_s: float
    warm_up_s: float = 3.0
    seed: int = 0

    @property
    def label(self) -> str:
        return f"{self.rate_hz:g} requests/s"


@dataclass(frozen=True, slots=True)
class BurstLoop:
    """`size` requests at the same moment, `times` times, idle for `pause_s` between two bursts.

    cold: it was the first load that the server got since it was ready.
    beside: streams that run all the while, each request of which follows the one before; from
        `pause_s` before the first burst on.
    """

    size: int
    times: int = 5
    pause_s: float = 3.0
    cold: bool = False
    beside: int = 0

    @property
    def label(self) -> str:
        times = f", {self.times} times" if self.times > 1 else ""
        beside = f", beside {self.beside} streams" if self.beside else ""
        return f"{self.size} at once{times}{beside}"


Plan = ClosedLoop | OpenLoop | BurstLoop


def loop_name(plan: Plan) -> str:
    """What reports and stored levels call the loop of `plan`."""
    match plan:
        case ClosedLoop():
            return "closed"
        case OpenLoop():
            return "open"
        case BurstLoop(cold=True):
            return "cold"
        case BurstLoop():
            return "burst"


@dataclass(slots=True)
class Run:
    """Everything one loop observed; times are absolute, of the client's clock.

    results: the sample, failures included.
    warm_up: what was sent before, or while, the sample was, and does not count.
    window: a span in which the load was the intended one throughout; throughput is taken there.
    span: first request of the sample sent, last one ended.
    max_in_flight: requests in flight at once, warm-up included.
    clock_errors_s: how late the client's own sleeps ended.
    stopped: why the sample is smaller than planned, "" if it is not.
    beside: what ran beside bursts; no part of the sample.
    """

    plan: Plan
    results: list[RequestResult] = field(default_factory=list)
    warm_up: list[RequestResult] = field(default_factory=list)
    window: tuple[float, float] = (0.0, 0.0)
    max_in_flight: int = 0
    clock_errors_s: list[float] = field(default_factory=list)
    stopped: str = ""
    beside: list[RequestResult] = field(default_factory=list)

    @property
    def span(self) -> tuple[float, float]:
        if not self.results:
            return (0.0, 0.0)
        return (
            min(result.sent_at_s for result in self.results),
            max(result.sent_at_s + result.end_s for result in self.results),
        )


async def run_closed(client: SpeechClient, workload: Workload, plan: ClosedLoop) -> Run:
    """Keep `plan.streams` requests in flight until `plan.requests` measured ones have ended."""
    run = Run(plan)
    deadline = None if plan.max_s is None else time.perf_counter() + plan.max_s
    indices = iter(range(plan.requests))
    full_from: list[float] = []
    full_until: list[float] = []

    async def stream(number: int) -> None:
        for turn in range(plan.warm_up):
            share = (number + 1) / plan.streams if turn == 0 else 1.0
            index = _WARM_UP_INDEX + turn * plan.streams + number
            run.warm_up.append(await client.speak(workload.call(index, share)))
        full_from.append(time.perf_counter())
        for index in indices:
            if deadline is not None and time.perf_counter() > deadline:
                run.stopped = f"after {plan.max_s:.0f} s, with {len(run.results)} requests made"
                break
            run.results.append(await client.speak(workload.call(index)))
        full_until.append(time.perf_counter())

    async with _observed(run), asyncio.TaskGroup() as group:
        for number in range(plan.streams):
            group.create_task(stream(number))
    run.max_in_flight = plan.streams
    run.window = (max(full_from), min(full_until))
    return run


async def run_open(client: SpeechClient, workload: Workload, plan: OpenLoop) -> Run:
    """Send at Poisson times and wait for every answer, or for the client's timeout."""
    run = Run(plan)
    total_s = plan.warm_up_s + plan.duration_s
    arrivals = poisson_arrivals(plan.rate_hz, total_s, plan.seed)
    in_flight = 0

    async def send(index: int, at_s: float, sample: list[RequestResult]) -> None:
        nonlocal in_flight
        in_flight += 1
        run.max_in_flight = max(run.max_in_flight, in_flight)
        sample.append(await client.speak(workload.call(index), at_s))
        in_flight -= 1

    async with _observed(run):
        start = time.perf_counter() + 0.05
        measured_from = start + plan.warm_up_s
        async with asyncio.TaskGroup() as group:
            num_warm = 0
            for number, offset_s in enumerate(arrivals):
                at_s = start + offset_s
                await asyncio.sleep(at_s - time.perf_counter())
                if offset_s < plan.warm_up_s:
                    num_warm += 1
                    group.create_task(send(_WARM_UP_INDEX + number, at_s, run.warm_up))
                else:
                    group.create_task(send(number - num_warm, at_s, run.results))
            await asyncio.sleep(start + total_s - time.perf_counter())
    run.window = (measured_from, start + total_s)
    return run


async def run_burst(client: SpeechClient, workload: Workload, plan: BurstLoop) -> Run:
    """Send each burst when every answer to the one before has ended and the pause is over.

    The results stand in the order of sending: those of burst `n` from `n * plan.size` on.
    """
    run = Run(plan, max_in_flight=plan.size + plan.beside)
    over = asyncio.Event()

    async def stream(number: int) -> None:
        share = (number + 1) / plan.beside
        for index in itertools.count(_WARM_UP_INDEX + number, plan.beside):
            run.beside.append(await client.speak(workload.call(index, share)))
            share = 1.0
            if over.is_set():
                return

    async with _observed(run), asyncio.TaskGroup() as group:
        for number in range(plan.beside):
            group.create_task(stream(number))
        for number in range(plan.times):
            if number or plan.beside:
                await asyncio.sleep(plan.pause_s)
            first = number * plan.size
            at_s = time.perf_counter()
            calls = [workload.call(index) for index in range(first, first + plan.size)]
            run.results += await asyncio.gather(*(client.speak(call, at_s) for call in calls))
        over.set()
    return run


@asynccontextmanager
async def _observed(run: Run) -> AsyncGenerator[None, None]:
    """Measure the client's own delays meanwhile, without collections of what lived before."""
    gc.collect()
    gc.freeze()
    probe = asyncio.create_task(_probe(run.clock_errors_s))
    try:
        yield
    finally:
        probe.cancel()
        gc.unfreeze()


async def _probe(late_s: list[float]) -> None:
    while True:
        before = time.perf_counter()
        await asyncio.sleep(_PROBE_PERIOD_S)
        late_s.append(time.perf_counter() - before - _PROBE_PERIOD_S)


def run_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `main` on uvloop where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
