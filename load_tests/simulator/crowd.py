"""`python -m load_tests.simulator.crowd`: more requests than there are places, at the ingresses.

Runs the gates that ship (`serve_app.load`) in simulated time: before them HAProxy, which refuses by
itself for a moment, behind them replicas with the step times of `measured.py`. What busy processors
add is not in it. Full load, a closed loop of as many streams as there are places, is what the
others are measured against.
"""

import argparse
import asyncio
import logging
import math
import random
import selectors
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate, chain, repeat
from typing import Any, Final

import numpy as np

from load_tests.loops.metrics import percentile
from load_tests.reports.report import table_head, table_line
from load_tests.simulator.measured import Service
from serve_app.errors import Full, Overloaded
from serve_app.launch.refusals import FULL_MS
from serve_app.load.admission import Admission
from serve_app.load.gate import Gate, StagePlaces
from serve_app.load.places import LOOKS, Places
from serve_app.types import CodecFrames, SpeechRequest

# By `Server-Timing`: one way between two processes, through Serve; until the application has read a
# request; from its admission to the engine's thread.
_HOP_S: Final = 0.0015
_READ_S: Final = 0.001
_HANDED_S: Final = 0.002
# By so much each request that begins makes a step longer.
_PREFILL_S: Final = 0.0012
# The first chunk is decoded beside the others', of up to 64 streams: so long at least, and so much
# more in the mean, which gives the p50 and p95 that were measured at full load (27 and 39 ms).
_DECODE_S: Final = 0.005
_BESIDE_S: Final = 0.004
# The last chunk, of twelve frames, is decoded with those of others.
_LAST_CHUNK_S: Final = 0.02
# As often as the router asks.
_ASK_EVERY_S: Final = 0.5
_COUNT_EVERY_S: Final = 0.02
_FRAMES: Final = (40, 80)
# Frames after which a chunk is full.
_CHUNK_ENDS: Final = frozenset(accumulate(chain((1, 3, 8), repeat(12, 20))))
_EQUAL: Final = 60
# Between two requests of a client; one that is refused waits as long as it is told.
_CLIENT_S: Final = 0.001
_RETRY_S: Final = 1.0

_REQUEST: Final = SpeechRequest("r", "m", "Hello.", None, "auto", seed=0)

_COLUMNS: Final = (
    "seed",
    "load",
    "complete/s, of full load",
    "first audio p50 / p95, ms",
    "p95 of full load's",
    "refused by HAProxy / ingress / replica",
    "refused",
)


class _Jump(selectors.DefaultSelector):
    """Waits by going on to the next moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now_s += timeout or 0.0
        return super().select(0)


class _SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now_s


def simulated(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=_SimulatedLoop) as runner:
        return runner.run(main)


@dataclass(slots=True)
class _Stream:
    """tell: called with how many streams its replica has, once for each chunk."""

    left: int
    tell: Callable[[int], None]
    made: int = 0
    first: asyncio.Event = field(default_factory=asyncio.Event)
    last: asyncio.Event = field(default_factory=asyncio.Event)


class _Replica:
    """`fused`: each step makes a frame of every running stream; who waits begins in turn."""

    def __init__(self, service: Service, draw: random.Random) -> None:
        self.ongoing = 0
        self.admission = Admission(service.max_queued, service.max_wait_s, "talker")
        self._service = service
        self._draw = draw
        self._running: list[_Stream] = []
        self._waiting: deque[_Stream] = deque()
        self._come = asyncio.Event()
        self.inside = 0

    async def run(self) -> None:
        while True:
            begun = 0
            while self._waiting and len(self._running) < self._service.capacity:
                self._running.append(self._waiting.popleft())
                begun += 1
            if not self._running:
                self._come.clear()
                await self._come.wait()
                continue
            step_s = self._service.step_s(float(len(self._running))) + begun * _PREFILL_S
            await asyncio.sleep(step_s)
            loop = asyncio.get_running_loop()
            for stream in self._running:
                stream.left -= 1
                stream.made += 1
                stream.first.set()
                if not stream.left:
                    self.inside -= 1
                    stream.last.set()
                if not stream.left or stream.made in _CHUNK_ENDS:
                    loop.call_later(_DECODE_S + _HOP_S, stream.tell, self.ongoing)
            self._running = [stream for stream in self._running if stream.left]

    async def frames(
        self, request: SpeechRequest, tell: Callable[[int], None]
    ) -> AsyncGenerator[CodecFrames, None]:
        loop = asyncio.get_running_loop()
        self.admission.check(
            self.inside, self._service.capacity, longest_wait_s=request.longest_wait_s
        )
        self.inside += 1
        await asyncio.sleep(_HANDED_S)
        stream = _Stream(request.max_new_tokens or self._draw.randint(*_FRAMES), tell)
        self._waiting.append(stream)
        self._come.set()
        await stream.first.wait()
        begun_s = loop.time()
        await asyncio.sleep(_DECODE_S + self._draw.expovariate(1 / _BESIDE_S))
        yield CodecFrames(np.zeros((1, 1), np.int64), 0)
        await stream.last.wait()
        self.admission.note(loop.time() - begun_s)
        await asyncio.sleep(_LAST_CHUNK_S)
        yield CodecFrames(np.zeros((1, 1), np.int64), 1, "stop")


class _Ingress:
    def __init__(self, service: Service, replicas: Sequence[_Replica], draw: random.Random) -> None:
        loop = asyncio.get_running_loop()
        self.connections = 0
        self._places = Places[int](loop.time, draw.choice)
        self._places.set_live(range(len(replicas)))
        self._replicas = replicas
        self._limit = 2 * service.capacity
        self.gate = Gate(
            [StagePlaces(lambda: self._places, service.capacity)],
            Admission(service.max_queued, service.max_wait_s),
            loop.time,
            model="m",
        )
        self.call = self.gate.into(self._called)

    async def ask(self) -> None:
        while True:
            await asyncio.sleep(_ASK_EVERY_S / LOOKS)
            for key in self._places.to_ask(_ASK_EVERY_S, self._limit // 2):
                await asyncio.sleep(_HOP_S)
                ongoing = self._replicas[key].ongoing
                await asyncio.sleep(_HOP_S)
                self._places.heard(key, ongoing)

    async def _called(
        self, request: SpeechRequest, done: np.ndarray | None
    ) -> AsyncGenerator[CodecFrames, None]:
        del done
        key = self._places.take(self._limit, places=self._limit // 2)
        if key is None:
            raise Overloaded("all have as many as they take")
        replica = self._replicas[key]
        try:
            await asyncio.sleep(_HOP_S)
            replica.ongoing += 1
            counted = replica.ongoing
            tell = partial(self._places.heard, key)
            asyncio.get_running_loop().call_later(_HOP_S, tell, counted)
            try:
                async with aclosing(replica.frames(request, tell)) as items:
                    async for item in items:
                        await asyncio.sleep(_HOP_S)
                        yield item
            except Overloaded:
                await asyncio.sleep(_HOP_S)
                self._places.refused(key)
                raise
            finally:
                replica.ongoing -= 1
        finally:
            self._places.give_back(key)


@dataclass(slots=True)
class Seen:
    """What clients saw in `span_s` seconds; seconds.

    by_proxy, by_ingress, by_replica: who refused.
    asked_s: when each request was made whose first audio came after `first_s`.
    streams: of each replica, running or waiting, every `_COUNT_EVERY_S`.
    """

    first_s: list[float] = field(default_factory=list)
    asked_s: list[float] = field(default_factory=list)
    by_proxy: int = 0
    by_ingress: int = 0
    by_replica: int = 0
    span_s: float = 0.0
    complete: int = 0
    streams: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def refusals(self) -> int:
        return self.by_proxy + self.by_ingress + self.by_replica

    @property
    def per_s(self) -> float:
        return self.complete / self.span_s

    def first_ms(self, share: float) -> float:
        return 1000 * percentile(self.first_s, share)


@dataclass(frozen=True, slots=True)
class Setting:
    service: Service = field(default_factory=Service)
    replicas: int = 1
    ingresses: int = 3

    @property
    def places(self) -> int:
        return self.replicas * self.service.capacity


class _Server:
    def __init__(self, setting: Setting, draw: random.Random) -> None:
        self.seen = Seen()
        self._draw = draw
        self._full_until_s = -math.inf
        service = setting.service
        self._replicas = [_Replica(service, draw) for _ in range(setting.replicas)]
        self._ingresses = [
            _Ingress(service, self._replicas, draw) for _ in range(setting.ingresses)
        ]
        self._tasks = [asyncio.create_task(replica.run()) for replica in self._replicas]
        self._tasks += [asyncio.create_task(ingress.ask()) for ingress in self._ingresses]
        self._tasks.append(asyncio.create_task(self._count()))

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(_COUNT_EVERY_S)
            self.seen.streams.append(tuple(replica.inside for replica in self._replicas))

    async def speak(self, frames: int | None = None) -> bool:
        """One request, as its client sees it; whether it was served."""
        loop, seen = asyncio.get_running_loop(), self.seen
        asked_s = loop.time()
        if asked_s < self._full_until_s:
            seen.by_proxy += 1
            return False
        least = min(ingress.connections for ingress in self._ingresses)
        ingress = self._draw.choice([i for i in self._ingresses if i.connections == least])
        ingress.connections += 1
        looked = False
        try:
            ingress.gate.look()
            looked = True
            await asyncio.sleep(_READ_S)
            request = replace(_REQUEST, max_new_tokens=frames)
            is_first = True
            async with aclosing(ingress.call(request, None)) as items:
                async for _ in items:
                    if is_first:
                        seen.first_s.append(loop.time() - asked_s)
                        seen.asked_s.append(asked_s)
                        is_first = False
            seen.complete += 1
            return True
        except Overloaded as error:
            if error.stage == "talker":
                seen.by_replica += 1
            else:
                seen.by_ingress += 1
            # As `http/speech/endpoint.py`: what is refused later may be so for its model alone.
            if isinstance(error, Full) and not looked:
                self._full_until_s = loop.time() + FULL_MS / 1000
            return False
        finally:
            ingress.connections -= 1


async def _open(server: _Server, rate_hz: float, seconds: float, draw: random.Random) -> None:
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds
    async with asyncio.TaskGroup() as group:
        while loop.time() < end_s:
            group.create_task(server.speak())
            await asyncio.sleep(draw.expovariate(rate_hz))


async def _closed(
    server: _Server,
    begins: Sequence[tuple[float, int | None]],
    seconds: float,
    frames: int | None = None,
) -> None:
    """Each client begins after some seconds with a request of so many frames, and goes on with
    requests of `frames`; None: of any length.
    """
    loop = asyncio.get_running_loop()
    end_s = loop.time() + seconds

    async def client(after_s: float, wanted: int | None) -> None:
        await asyncio.sleep(after_s)
        while loop.time() < end_s:
            await asyncio.sleep(_CLIENT_S if await server.speak(wanted) else _RETRY_S)
            wanted = frames

    async with asyncio.TaskGroup() as group:
        for begin in begins:
            group.create_task(client(*begin))


def measure(
    setting: Setting,
    seconds: float,
    seed: int,
    *,
    streams: int = 0,
    at_once: bool = False,
    rate_hz: float = 0.0,
) -> Seen:
    """A closed loop of `streams` clients, or Poisson arrivals of `rate_hz` per second."""
    draw = random.Random(f"crowd/{seed}")

    async def main() -> Seen:
        server = _Server(setting, draw)
        try:
            if streams and at_once:
                # As `load_tests.loops` begins one: with requests of different lengths.
                firsts = [max(1, _EQUAL * number // streams) for number in range(1, streams + 1)]
                await _closed(server, [(0.0, first) for first in firsts], seconds, _EQUAL)
            elif streams:
                begins = [(draw.uniform(0.0, 0.5), None) for _ in range(streams)]
                await _closed(server, begins, seconds)
            else:
                await _open(server, rate_hz, seconds, draw)
        finally:
            server.close()
        server.seen.span_s = asyncio.get_running_loop().time()
        return server.seen

    return simulated(main())


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m load_tests.simulator.crowd")
    parser.add_argument("--times", type=float, nargs="*", default=[1.0, 3.0, 10.0])
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--capacity", type=int, default=Service().capacity, help="of a replica")
    parser.add_argument("--slower", type=float, default=1.0, help="times a step of an H200's")
    parser.add_argument("--ingresses", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="*", default=[], help="of more closed loops")
    parser.add_argument(
        "--at-once", action="store_true", help="also full load that begins at one moment"
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    service = Service(args.capacity, slower=args.slower)
    setting = Setting(service, args.replicas, args.ingresses)
    print("\n".join(table_head(_COLUMNS, 2)))
    for seed in args.seeds:
        full = measure(setting, args.seconds, seed, streams=setting.places)
        print(_line(seed, f"{setting.places} streams", full, full), flush=True)
        if args.at_once:
            seen = measure(setting, args.seconds, seed, streams=setting.places, at_once=True)
            print(_line(seed, f"{setting.places} streams at once", seen, full), flush=True)
        for streams in args.streams:
            seen = measure(setting, args.seconds, seed, streams=streams)
            print(_line(seed, f"{streams} streams", seen, full), flush=True)
        for times in args.times:
            rate_hz = times * full.per_s
            seen = measure(setting, args.seconds, seed, rate_hz=rate_hz)
            print(_line(seed, f"{times:g} times", seen, full), flush=True)
    return 0


def _line(seed: int, load: str, seen: Seen, full: Seen) -> str:
    refused = (seen.by_proxy, seen.by_ingress, seen.by_replica)
    return table_line(
        [
            str(seed),
            load,
            f"{seen.per_s:.1f}, {100 * seen.per_s / full.per_s:.1f} %",
            f"{seen.first_ms(0.5):.0f} / {seen.first_ms(0.95):.0f}",
            f"{seen.first_ms(0.95) / full.first_ms(0.95):.2f}",
            " / ".join(map(str, refused)),
            f"{100 * seen.refusals / (seen.complete + seen.refusals):.1f} %",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
