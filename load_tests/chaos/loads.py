"""The loads that a server is put under, each for a number of seconds."""

import asyncio
import itertools
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from load_tests.chaos.compare import References
from load_tests.chaos.listener import Listener
from load_tests.chaos.outcomes import Turn
from load_tests.loops.client import EAGER, AudioShape, Manner
from load_tests.loops.fleet import Fleet, parts_of, take_off_s, until
from load_tests.loops.runner import (
    BurstLoop,
    ClosedLoop,
    OpenLoop,
    run_burst,
    run_closed,
    run_loop,
    run_open,
)
from load_tests.loops.workload import Workload

# s, of a closed loop, which asks at once.
_LEAST_S: Final = 1.0
LOADS: Final = ("steady", "burst", "step", "overload", "slow", "vanishing")
# As many as nobody sends in a phase: it ends by time.
_ENDLESS: Final = 1_000_000_000
# A slow reader's own buffers, so that it is the server that has to wait.
_SMALL_BUFFERS: Final = 4096
_STALL_S: Final = (0.5, 3.0)
# Between two requests that look whether the server has recovered.
_PROBE_S: Final = 0.05
_LEAVES_S: Final = (0.0, 2.0)


@dataclass(slots=True)
class Driver:
    """Puts one server under loads, one turn after the other.

    Args:
        workload: its `distinct` requests are all that is ever asked.
        streams: in flight at full load.
        size: of a burst.
        capacity_hz: complete requests per second at full load, once that was measured.
        recovered_at_s: first audio that takes no longer is as at full load, once that was measured.
        clients: processes that send an overload.
    """

    url: str
    workload: Workload
    references: References
    streams: int
    size: int
    seed: int = 0
    timeout_s: float = 120.0
    pause_s: float = 3.0
    capacity_hz: float | None = None
    recovered_at_s: float | None = None
    shape: AudioShape = field(default_factory=AudioShape)
    clients: int = 1

    def listener(self, turn: Turn, **options: Any) -> Listener:
        distinct = self.workload.distinct
        assert distinct is not None
        return Listener(
            self.url,
            self.shape,
            self.timeout_s,
            turn=turn,
            references=self.references,
            distinct=distinct,
            **options,
        )

    async def cold(self) -> Turn:
        """The first load after ready: a burst."""
        turn = Turn("cold", time.perf_counter())
        async with self.listener(turn) as client:
            run = await run_burst(client, self.workload, BurstLoop(self.size, times=1, cold=True))
        turn.lags_s += run.clock_errors_s
        return ended(turn)

    async def learn(self) -> Turn:
        """Each request alone: what every later stream is compared with."""
        turn = Turn("alone", time.perf_counter())
        async with self.listener(turn, teach=True) as client:
            for number in range(self.workload.distinct or 0):
                await client.speak(self.workload.call(number))
        return ended(turn)

    async def run(self, load: str, seconds: float, factor: float = 3.0) -> Turn:
        """One turn of `load`; `factor` is of the capacity, in an overload and in a soak."""
        name = f"overload {factor:g}x" if load == "overload" else load
        if load == "soak":
            name = f"soak at {100 * factor:.0f} %"
        turn = Turn(name, time.perf_counter())
        end_s = turn.begin_s + seconds
        if load == "overload":
            await self._overload(turn, seconds, factor)
        elif load == "soak":
            await self.steady(turn, end_s, max(1, round(factor * self.streams)))
        else:
            await _TURNS[load](self, turn, end_s)
        return ended(turn)

    async def steady(self, turn: Turn, end_s: float, streams: int | None = None) -> None:
        async with self.listener(turn, patient=True) as client:
            run = await run_closed(client, self.workload, _until(end_s, streams or self.streams))
        turn.lags_s += run.clock_errors_s

    async def during(
        self, name: str, change: Awaitable[Any], after_s: float, streams: int | None = None
    ) -> Turn:
        """Full load, or `streams`, while `change` is made, and for `after_s` seconds more."""
        turn = Turn(name, time.perf_counter())
        over = asyncio.Event()
        async with self.listener(turn, patient=True) as client, asyncio.TaskGroup() as group:
            count = streams or self.streams
            for first in range(count):
                group.create_task(self._ask_until(client, over, first, count))
            await change
            await asyncio.sleep(after_s)
            over.set()
        return ended(turn)

    async def _ask_until(
        self, client: Listener, over: asyncio.Event, first: int, streams: int
    ) -> None:
        for number in itertools.count(first, streams):
            if over.is_set():
                return
            await client.speak(self.workload.call(number))

    async def _burst(self, turn: Turn, end_s: float) -> None:
        async with self.listener(turn) as client:
            while True:
                run = await run_burst(client, self.workload, BurstLoop(self.size, times=1))
                turn.lags_s += run.clock_errors_s
                await asyncio.sleep(self.pause_s)
                if time.perf_counter() >= end_s:
                    return

    async def _step(self, turn: Turn, end_s: float) -> None:
        """One stream, then from one moment on all of them."""
        middle_s = (time.perf_counter() + end_s) / 2

        async def others(client: Listener) -> None:
            await asyncio.sleep(middle_s - time.perf_counter())
            run = await run_closed(client, self.workload, _until(end_s, max(1, self.streams - 1)))
            turn.lags_s += run.clock_errors_s

        async with self.listener(turn, patient=True) as client, asyncio.TaskGroup() as group:
            group.create_task(run_closed(client, self.workload, _until(end_s, 1)))
            group.create_task(others(client))

    async def _overload(self, turn: Turn, seconds: float, factor: float) -> None:
        if not self.capacity_hz:
            raise ValueError("an overload needs the capacity, which full load measures")
        plan = OpenLoop(factor * self.capacity_hz, seconds, warm_up_s=0.0, seed=self.seed)
        with ExitStack() as stack:
            fleet = None
            if self.clients > 1:
                fleet = await asyncio.to_thread(stack.enter_context, Fleet(self.clients))
            turn.begin_s = take_off_s()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._recovery(turn, turn.begin_s + seconds))
                await self._arrivals(turn, plan, fleet)

    async def _arrivals(self, turn: Turn, plan: OpenLoop, fleet: Fleet | None) -> None:
        if fleet is None:
            await self.arrivals(turn, plan)
        else:
            parts = [
                _Part(self, Turn(turn.phase, turn.begin_s), part)
                for part in parts_of(plan, self.clients)
            ]
            for sent in await asyncio.gather(*map(asyncio.wrap_future, fleet.each(_send, parts))):
                turn.outcomes += sent.outcomes
                turn.lags_s += sent.lags_s
                turn.end_s = sent.end_s if math.isnan(turn.end_s) else max(turn.end_s, sent.end_s)

    async def arrivals(self, turn: Turn, plan: OpenLoop) -> None:
        async with self.listener(turn) as client:
            await until(turn.begin_s)
            run = await run_open(client, self.workload, plan)
        # Not when all of it has been handed over, or the server was seen to have recovered.
        turn.end_s = time.perf_counter()
        turn.lags_s += run.clock_errors_s

    async def _slow(self, turn: Turn, end_s: float) -> None:
        """Half of them read at the speed of playback, the others stall after the first piece."""
        draw = random.Random(f"slow/{self.seed}")

        def manner(index: int) -> Manner:
            return Manner(speed=1.0) if index % 2 else Manner(stall_s=draw.uniform(*_STALL_S))

        async with self.listener(
            turn, manner=manner, buffer_bytes=_SMALL_BUFFERS, patient=True
        ) as client:
            run = await run_closed(client, self.workload, _until(end_s, self.streams))
        turn.lags_s += run.clock_errors_s

    async def _vanishing(self, turn: Turn, end_s: float) -> None:
        """Two of three hang up, at any moment from before the first audio on."""
        draw = random.Random(f"vanishing/{self.seed}")

        def manner(index: int) -> Manner:
            return Manner(leave_after_s=draw.uniform(*_LEAVES_S)) if index % 3 else EAGER

        async with self.listener(turn, manner=manner, patient=True) as client:
            run = await run_closed(client, self.workload, _until(end_s, self.streams))
        turn.lags_s += run.clock_errors_s

    async def _recovery(self, turn: Turn, over_s: float, within_s: float = 60.0) -> None:
        """From `over_s` on, ask until a first audio is as at full load; none of it counts."""
        if self.recovered_at_s is None:
            return
        await until(over_s)
        async with self.listener(Turn("recovery", over_s)) as client:
            while (asked_s := time.perf_counter()) < over_s + within_s:
                result = await client.speak(self.workload.call(0))
                if result.ok and (result.first_playable_s or 0.0) <= self.recovered_at_s:
                    turn.recovered_s = asked_s - over_s
                    return
                await asyncio.sleep(_PROBE_S)


@dataclass(frozen=True, slots=True)
class _Part:
    """What one of several processes sends."""

    driver: Driver
    turn: Turn
    plan: Any


def _send(part: _Part) -> Turn:
    run_loop(lambda: part.driver.arrivals(part.turn, part.plan))
    for outcome in part.turn.outcomes:
        outcome.body = b""  # there is no reference for it, or it was compared
    return part.turn


_Turn = Callable[[Driver, Turn, float], Awaitable[None]]
_TURNS: Final[Mapping[str, _Turn]] = {
    "steady": Driver.steady,
    "burst": Driver._burst,
    "step": Driver._step,
    "slow": Driver._slow,
    "vanishing": Driver._vanishing,
}


def _until(end_s: float, streams: int) -> ClosedLoop:
    """Until then; where a busy machine took that long to begin, a request of each stream."""
    left_s = max(_LEAST_S, end_s - time.perf_counter())
    return ClosedLoop(streams, _ENDLESS, warm_up=0, max_s=left_s)


def ended(turn: Turn) -> Turn:
    """The turn, which is over: now, or since it said so."""
    if math.isnan(turn.end_s):
        turn.end_s = time.perf_counter()
    turn.load_average = os.getloadavg()[0]
    return turn
