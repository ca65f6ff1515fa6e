"""`python -m load_tests.simulator.routing`: replicas of unequal speed behind the router's choice.

Runs `serve_app.load.places` with the step times of `measured.py` and one replica that takes longer
for each, once by the number of streams alone and once with those that are late counted as several.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from load_tests.loops.metrics import CONTINUITY_S, percentile
from load_tests.simulator.measured import Service
from serve_app.load.places import Places
from serve_app.load.streams import LATE_S

_TICK_S: Final = 0.02
# As often as the router looks.
_LOOK_S: Final = 0.5
_FRAME_S: Final = 0.08
_FIRST_S: Final = 1.0
_FRAMES: Final = (20, 200)


@dataclass(slots=True)
class _Listener:
    """One stream: times in seconds, amounts in frames; fractions of a frame are not heard."""

    begun_s: float
    replica: int
    frames: float
    made: float = 0.0
    first_s: float | None = None
    due_s: float = 0.0
    dry_s: float = 0.0
    late_s: float = float("-inf")

    def make(self, frames: float, now_s: float) -> None:
        whole = int(self.made)
        self.made += frames
        heard = int(self.made) - whole
        if not heard:
            return
        if self.first_s is None:
            self.first_s, self.due_s = now_s - self.begun_s, now_s
        if now_s > self.due_s:
            self.dry_s += now_s - self.due_s
            self.late_s = now_s
        self.due_s = max(self.due_s, now_s) + heard * _FRAME_S

    def is_late(self, now_s: float) -> bool:
        if self.first_s is None:
            return now_s - self.begun_s > _FIRST_S
        return now_s > self.due_s or now_s - self.late_s < LATE_S


@dataclass(frozen=True, slots=True)
class Outcome:
    """streams: of each replica, in the mean over time; the others are of the streams that ended."""

    ended: int
    dry: float
    first_audio_p95_s: float
    streams: tuple[float, ...]


def simulate(
    service: Service,
    slower: Sequence[float],
    rate_hz: float,
    seconds: float,
    seed: int,
    *,
    counts_late: bool,
) -> Outcome:
    """Let Poisson arrivals come for `seconds`; replica `i` takes `slower[i]` times as long for a
    step.
    """
    draw = random.Random(f"routing/{seed}")
    now_s, looked_s, next_s = 0.0, 0.0, draw.expovariate(rate_hz)
    places = Places[int](lambda: now_s, draw.choice)
    places.set_live(range(len(slower)))
    running: list[_Listener] = []
    ended: list[_Listener] = []
    sums = [0] * len(slower)
    ticks = 0
    while now_s < seconds:
        while next_s <= now_s:
            chosen = places.take(2 * service.capacity, places=service.capacity)
            if chosen is not None:
                running.append(_Listener(next_s, chosen, draw.randint(*_FRAMES)))
            next_s += draw.expovariate(rate_hz)
        if counts_late and now_s - looked_s >= _LOOK_S:
            looked_s = now_s
            for replica in range(len(slower)):
                mine = [s for s in running if s.replica == replica]
                places.set_late(replica, sum(stream.is_late(now_s) for stream in mine))
        loads = [places.load(replica) for replica in range(len(slower))]
        made = [
            _TICK_S / (service.step_s(float(load)) * factor) if load else 0.0
            for load, factor in zip(loads, slower, strict=True)
        ]
        now_s += _TICK_S
        ticks += 1
        sums = [total + load for total, load in zip(sums, loads, strict=True)]
        for stream in running:
            stream.make(made[stream.replica], now_s)
        for stream in [stream for stream in running if stream.made >= stream.frames]:
            running.remove(stream)
            ended.append(stream)
            places.give_back(stream.replica)
    return Outcome(
        ended=len(ended),
        dry=sum(stream.dry_s > CONTINUITY_S for stream in ended) / max(1, len(ended)),
        first_audio_p95_s=percentile([stream.first_s or 0.0 for stream in ended], 0.95),
        streams=tuple(total / ticks for total in sums),
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m load_tests.simulator.routing")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--slower", type=float, nargs="+", default=[1.0, 4.0, 8.0, 16.0])
    parser.add_argument(
        "--load", type=float, default=0.6, help="of what all make with as many streams as fit"
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    service = Service()
    mean = sum(_FRAMES) / 2
    print("| one replica's steps | choice | ended | dry | first audio p95, ms | streams of each |")
    print("|---|---|---:|---:|---:|---|")
    for factor in args.slower:
        slower = [1.0] * (args.replicas - 1) + [factor]
        each_hz = service.capacity / (mean * service.step_s(float(service.capacity)))
        rate_hz = args.load * sum(each_hz / one for one in slower)
        for counts_late in (False, True):
            found = simulate(
                service, slower, rate_hz, args.seconds, args.seed, counts_late=counts_late
            )
            choice = "late ones count" if counts_late else "fewest streams"
            streams = ", ".join(f"{mean:.0f}" for mean in found.streams)
            print(
                f"| {factor:g} x | {choice} | {found.ended} | {100 * found.dry:.1f} % |"
                f" {1000 * found.first_audio_p95_s:.0f} | {streams} |"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
