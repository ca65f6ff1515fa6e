"""What is seen beside a closed loop, and what it comes to: replicas, processes, processor, GPUs.

Everything is taken within the window in which all streams had a request, as throughput is. Where
a second GPU does not bring what the first one does, the reason is here: replicas whose streams are
uneven, steps that take longer, a process that is full, a processor that is slower with more to do.
"""

import multiprocessing
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from math import isfinite
from statistics import mean
from typing import Any, Final

from load_tests.curve.cores import Busy
from load_tests.curve.figures import Received
from load_tests.loops.metrics import first_audio, percentile
from load_tests.loops.runner import Run
from load_tests.reports.circumstances import million_ms
from load_tests.servers.gpu_watch import GpuReading
from load_tests.servers.looks import Look
from load_tests.servers.processes import ServerProcess
from load_tests.simulator.balance import unevenness

_PERIOD_S: Final = 0.3
_PARTS: Final = 4
_INGRESS: Final = "Ingress"

Span = tuple[float, float]


@dataclass(slots=True)
class Beside:
    """Samples of this machine while a load runs.

    million_ms: when (`time.perf_counter`), and how long a million additions in Python took then.
    """

    busy: list[Busy] = field(default_factory=list)
    million_ms: list[tuple[float, float]] = field(default_factory=list)


def watch(futures: Sequence["Future[Any]"], server: Callable[[], list[ServerProcess]]) -> Beside:
    """Look until the load of `futures` has ended; `server` finds the processes of the server."""
    beside = Beside()
    processes = [*server(), *clients()]
    while not all(future.done() for future in futures):
        beside.busy.append(Busy.now(processes))
        began_s = time.perf_counter()
        beside.million_ms.append((began_s, million_ms()))
        time.sleep(_PERIOD_S)
    beside.busy.append(Busy.now(processes))
    return beside


def clients() -> list[ServerProcess]:
    """The processes of this one's fleet."""
    children = multiprocessing.active_children()
    return [ServerProcess(child.pid, "client", 0) for child in children if child.pid is not None]


def account(
    run: Run, beside: Beside, looks: Sequence[Look], gpus: Sequence[GpuReading]
) -> dict[str, Any]:
    """All of it as JSON; seconds, frames and cores, times of `Server-Timing` in ms."""
    window = run.window if run.window[1] > run.window[0] else run.span
    within = [look for look in looks if window[0] <= look.at_s <= window[1]]
    return {
        "window_s": round(window[1] - window[0], 2),
        "parts_audio_s_per_s": parts(run, window),
        "parts_first_p95_ms": first_audio_parts(run, window),
        "requests": requests_of(within),
        "work": work_of(within),
        "way_ms": way(run),
        "busy": busy_within(beside.busy, window),
        "million_ms": _mean([ms for at_s, ms in beside.million_ms if _is_in(at_s, window)]),
        "gpus": gpus_within(gpus, window),
    }


def parts(run: Run, window: Span) -> list[float]:
    """Audio-s/s of each quarter of the window: whether it was the same throughout."""
    received = Received((*run.warm_up, *run.results))
    return [round(received.audio_s(a, b) / (b - a), 1) for a, b in _quarters(window)]


def first_audio_parts(run: Run, window: Span) -> list[float | None]:
    """p95 of first audio, in ms, of what was sent in each quarter of the window: whether a few
    moments made it, or all of them; None where nothing was sent, or a failure reaches.
    """
    found: list[float | None] = []
    for a, b in _quarters(window):
        p95_s = percentile(first_audio([r for r in run.results if a <= r.sent_at_s < b]), 0.95)
        found.append(round(1000 * p95_s, 1) if isfinite(p95_s) else None)
    return found


def requests_of(looks: Sequence[Look]) -> dict[str, dict[str, Any]]:
    """Of each deployment: requests of each replica in the mean, how far one is from the mean of
    all (in requests, in the mean), and the share of looks with one a tenth away from it.
    """
    found: dict[str, dict[str, Any]] = {}
    for deployment in dict.fromkeys(name for look in looks for name in look.requests):
        names = sorted({n for look in looks for n in look.requests.get(deployment, {})})
        moments = [
            [look.requests[deployment][name] for name in names]
            for look in looks
            if set(look.requests.get(deployment, {})) == set(names)
        ]
        if moments:
            away, far = unevenness(moments)
            each = [round(mean(counts), 1) for counts in zip(*moments, strict=True)]
            found[deployment] = {"each": each, "away": round(away, 2), "far": round(far, 3)}
    return found


def work_of(looks: Sequence[Look]) -> dict[str, list[dict[str, float | None]]]:
    """Of each stage, one entry per replica: frames and steps per second, streams in a step, and
    how long a step took, by the stage's own account.
    """
    series: dict[tuple[str, str], list[tuple[float, Mapping[str, float]]]] = {}
    for look in looks:
        for replicas in look.work.values():
            for replica, stages in replicas.items():
                for stage, counters in stages.items():
                    series.setdefault((stage, replica), []).append((look.at_s, counters))
    found: dict[str, list[dict[str, float | None]]] = {}
    for (stage, _), seen in sorted(series.items()):
        (begin_s, before), (end_s, after) = seen[0], seen[-1]
        span_s = end_s - begin_s
        if span_s <= 0:
            continue
        frames, steps, step_s = (
            after.get(name, 0.0) - before.get(name, 0.0) for name in ("frames", "steps", "step_s")
        )
        found.setdefault(stage, []).append(
            {
                "frames_per_s": round(frames / span_s, 1),
                "steps_per_s": round(steps / span_s, 1),
                "frames_per_step": round(frames / steps, 2) if steps else None,
                "step_ms": round(1000 * step_s / steps, 2) if steps else None,
            }
        )
    return found


def way(run: Run) -> dict[str, list[float]]:
    """p50, p95 and mean of where first audio was, in ms: `outside` is what the client saw beyond
    the ingress's account, `to stages` the ingress's beyond that of the stages, with the way there.
    """
    found: dict[str, list[float]] = {}
    for result in run.results:
        first_s, said = result.first_playable_s, result.server_s
        if not result.ok or first_s is None:
            continue
        found.setdefault("client", []).append(first_s)
        if "ingress" in said:
            found.setdefault("outside", []).append(first_s - said["ingress"])
            if "stages" in said:
                found.setdefault("to stages", []).append(said["ingress"] - said["stages"])
        for name, seconds in said.items():
            found.setdefault(name, []).append(seconds)
    return {
        name: [
            round(1000 * each, 2)
            for each in (percentile(seconds, 0.5), percentile(seconds, 0.95), mean(seconds))
        ]
        for name, seconds in found.items()
    }


def busy_within(samples: Sequence[Busy], window: Span) -> dict[str, Any] | None:
    """Between the samples next to the window's ends; None where there are not two."""
    times = [sample.at_s for sample in samples]
    first, last = (_nearest(times, at_s) for at_s in window)
    return samples[last].since(samples[first]) if last > first else None


def gpus_within(readings: Sequence[GpuReading], window: Span) -> list[dict[str, Any]]:
    """Means, the lowest clock, and all reasons that held one down, by GPU."""
    by_gpu: dict[int, list[GpuReading]] = {}
    for reading in readings:
        if _is_in(reading.at_s, window):
            by_gpu.setdefault(reading.index, []).append(reading)
    return [
        {
            "index": index,
            "sm_mhz": round(mean(r.sm_mhz for r in seen)),
            "least_sm_mhz": round(min(r.sm_mhz for r in seen)),
            "power_w": round(mean(r.power_w for r in seen)),
            "utilization": round(mean(r.utilization for r in seen)),
            "celsius": round(max(r.celsius for r in seen)),
            "held_down": hex(_any(r.held_down for r in seen)),
        }
        for index, seen in sorted(by_gpu.items())
    ]


def _quarters(window: Span) -> list[Span]:
    step_s = (window[1] - window[0]) / _PARTS
    if step_s <= 0:
        return []
    return list(pairwise(window[0] + step_s * number for number in range(_PARTS + 1)))


def _nearest(times: Sequence[float], at_s: float) -> int:
    after = bisect_left(times, at_s)
    around = [n for n in (after - 1, after) if 0 <= n < len(times)]
    return min(around, key=lambda number: abs(times[number] - at_s), default=0)


def _is_in(at_s: float, window: Span) -> bool:
    return window[0] <= at_s <= window[1]


def _mean(values: Sequence[float]) -> float | None:
    return round(mean(values), 1) if values else None


def _any(bits: Any) -> int:
    found = 0
    for each in bits:
        found |= each
    return found
