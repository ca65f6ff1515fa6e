"""What the server consists of, looked at again and again while it is under load."""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from load_tests.servers.processes import DEPLOYMENTS, ServerProcess, replicas_of, usage

_PERIOD_S: Final = 0.5
# Longer than the server's own count of its replicas may be old: it must stay healthy for so long.
HOLD_S: Final = 3.0

_LATE_KERNELS: Final = re.compile(
    r"^(?:ray_)?tts_kernels_compiled_late_total(?:\{[^}]*\})? (\S+)", re.MULTILINE
)

Health = Callable[[], Awaitable[Mapping[str, Any] | None]]
Metrics = Callable[[], Awaitable[str]]


async def _no_metrics() -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Reading:
    """What there was at a time.

    counts: processes of each kind that run; stopped ones do not.
    ready: replicas that `/health` called ready, by the kind of their processes.
    state: what else it said, "" if it gave no answer.
    pids: of all processes, stopped or not.
    """

    at_s: float
    counts: Mapping[str, int]
    ready: Mapping[str, int]
    state: str
    pids: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process had taken at a time."""

    at_s: float
    kind: str
    pid: int
    rss_mib: float
    descriptors: int
    threads: int


def healed_at(
    readings: Sequence[Reading],
    since_s: float,
    kind: str,
    count: int,
    hold_s: float = HOLD_S,
    *,
    alone: bool = False,
) -> float | None:
    """When the server was whole again after `since_s`; None if that is not seen yet.

    Whole: `count` running processes of `kind` and as many ready replicas as ever before, and so it
    stayed for `hold_s`. The first reading after a kill may still call ready what nobody has missed;
    and one that hangs counts as there, and makes the state degraded, long after it was replaced.
    `alone`: the replicas of other kinds do not count, which may be struck as well.
    """
    begin: float | None = None

    def num_ready(reading: Reading) -> int:
        return reading.ready.get(replicas_of(kind), 0) if alone else sum(reading.ready.values())

    ready = max((num_ready(reading) for reading in readings if reading.at_s < since_s), default=0)
    for reading in readings:
        if reading.at_s < since_s:
            continue
        if num_ready(reading) < ready or reading.counts.get(kind, 0) < count:
            begin = None
            continue
        begin = reading.at_s if begin is None else begin
        if reading.at_s - begin >= hold_s:
            return begin
    return None


def gone_at(readings: Sequence[Reading], since_s: float, pid: int) -> float | None:
    """When a process had ended; None if that was not seen."""
    return next(
        (r.at_s for r in readings if r.at_s > since_s and pid not in r.pids),
        None,
    )


@dataclass(slots=True)
class Watch:
    """Reads the processes and the health until it is cancelled; an entry per look.

    Args:
        find: the processes of the server; called on a thread.
        health: the server's `/health`.
        metrics: its `/metrics`.
        sample_s: between two looks at what the processes take, and at the metrics.

    Attributes:
        late_kernels: kernels that stages met after they were ready, the most that was read at a
            time: the count of a process ends with it.
    """

    find: Callable[[], Sequence[ServerProcess]]
    health: Health
    metrics: Metrics = _no_metrics
    sample_s: float = 10.0
    clock: Callable[[], float] = time.perf_counter
    readings: list[Reading] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    late_kernels: int = 0

    async def run(self) -> None:
        sampled_s = float("-inf")
        while True:
            found = await asyncio.to_thread(self.find)
            health = await self.health()
            now_s = self.clock()
            self.readings.append(_reading(now_s, found, health or {}))
            if now_s - sampled_s >= self.sample_s:
                sampled_s = now_s
                self.samples += await asyncio.to_thread(_sample, found, now_s)
                self.late_kernels = max(self.late_kernels, late_kernels_of(await self.metrics()))
            await asyncio.sleep(_PERIOD_S)


def late_kernels_of(exposition: str) -> int:
    """Sum over all stages and replicas, of an answer of `/metrics`."""
    return round(sum(map(float, _LATE_KERNELS.findall(exposition))))


def _reading(now_s: float, found: Sequence[ServerProcess], health: Mapping[str, Any]) -> Reading:
    return Reading(
        at_s=now_s,
        counts=Counter(process.kind for process in found if not process.stopped),
        ready={
            DEPLOYMENTS.get(str(name), str(name)): count["ready"]
            for name, count in health.get("replicas", {}).items()
        },
        state=str(health.get("status", "")),
        pids=frozenset(process.pid for process in found),
    )


def _sample(found: Sequence[ServerProcess], at_s: float) -> list[Sample]:
    return [
        Sample(at_s, process.kind, process.pid, used.rss_mib, used.descriptors, used.threads)
        for process in found
        if (used := usage(process.pid)) is not None
    ]
