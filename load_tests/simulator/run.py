"""Put a load on a fleet that the shipped policy scales, and on one that an oracle does."""

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from load_tests.simulator.loads import Load
from load_tests.simulator.machine import Fleet, Second, bins_of
from load_tests.simulator.measured import Service
from serve_app.scaling import snapshot as names
from serve_app.scaling.policy import INGRESS, Memory, decide
from serve_app.scaling.snapshot import Snapshot, StageLoad
from serve_app.scaling.tuning import Tuning

STAGE = "Fused"
# From so many in a second on, their lengths are as those of all.
_MANY = 2000


@dataclass(slots=True)
class Outcome:
    """One run; arrays are by the second."""

    load: str
    seconds: list[Second] = field(default_factory=list)
    wanted: list[int] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    changes: int = 0

    @property
    def gpu_hours(self) -> float:
        return sum(second.gpu_s for second in self.seconds) / 3600

    @property
    def requests(self) -> int:
        return sum(second.arrived for second in self.seconds)

    @property
    def refused(self) -> int:
        return sum(second.refused for second in self.seconds)

    def first_audio_s(self, quantile: float, begin: int = 0, end: int | None = None) -> float:
        """Of all requests of these seconds; who was refused never had any."""
        pairs = [pair for second in self.seconds[begin:end] for pair in second.first_audio_s]
        refused = sum(second.refused for second in self.seconds[begin:end])
        pairs = sorted([*pairs, (math.inf, refused)])
        total = sum(count for _, count in pairs)
        seen = 0
        for value, count in pairs:
            seen += count
            if seen >= quantile * total > 0:
                return value
        return math.nan


def simulate(
    load: Load,
    tuning: Tuning,
    service: Service,
    *,
    least: int = 1,
    most: int = 10_000,
    begin: int | None = None,
    tick_s: int = 1,
) -> Outcome:
    """Run the policy that ships through `load`.

    Args:
        load: what is asked.
        tuning: constants of the policy.
        service: a replica.
        least: replicas there always are.
        most: GPUs there are.
        begin: replicas at the beginning; None: those the first minute needs.
        tick_s: between two decisions.
    """
    needed = needed_replicas(load, tuning, service)
    fleet = Fleet(service, begin or max(least, int(needed[:60].max()) + tuning.spare))
    outcome = Outcome(load.name)
    memory = Memory()
    reports: deque[Snapshot] = deque()
    # What replicas and ingresses count: none of the former sees what the latter refuse.
    arrived: deque[int] = deque(maxlen=int(names.WINDOW_S))
    refused: deque[int] = deque(maxlen=int(names.REFUSED_S))
    whole, cursor = bins_of(load.lengths) / len(load.lengths), 0
    for second, count in enumerate(load.arrivals.tolist()):
        share = load.losses.get(second, 0.0)
        moved = fleet.lose(math.ceil(share * fleet.ready))
        if count < _MANY:
            at = (cursor + np.arange(count)) % len(load.lengths)
            bins = bins_of(load.lengths[at])
            cursor += count
        else:
            bins = whole * count
        seen = fleet.second(float(second), count, bins)
        seen.moved = max(seen.moved, moved)
        arrived.append(count - seen.refused)
        refused.append(seen.refused)
        outcome.seconds.append(seen)
        reports.append(_snapshot(fleet, second, seen, arrived, refused, least, most))
        while len(reports) > 1 and reports[1].at_s <= second - service.report_s:
            reports.popleft()
        if second % tick_s == 0:
            before = fleet.target
            current = _with_counts(reports[0], second, fleet)
            decision, memory = decide(tuning, memory, current)
            fleet.scale(decision.targets[STAGE], float(second))
            outcome.reasons[decision.reason] = outcome.reasons.get(decision.reason, 0) + 1
            outcome.changes += fleet.target != before
        outcome.wanted.append(fleet.target)
    return outcome


def needed_replicas(load: Load, tuning: Tuning, service: Service) -> np.ndarray:
    """int64 [seconds]: replicas that carry what runs at each second, with the policy's room."""
    step_s = service.step_s(service.capacity * tuning.up_share)
    mean = float(np.minimum(load.lengths, 8192).mean())
    kept = max(1.0, mean * step_s)
    # Streams at once are what came while a stream keeps its place.
    window = max(1, round(kept))
    rate = np.convolve(load.arrivals, np.ones(window) / window)[: len(load.arrivals)]
    streams = rate * mean * step_s
    return np.maximum(1, np.ceil(streams / (service.capacity * tuning.up_share))).astype(np.int64)


def oracle_replicas(load: Load, tuning: Tuning, service: Service, least: int = 1) -> np.ndarray:
    """int64 [seconds]: what who knows the future has, ready just when they are needed.

    With the same room on each, so that first audio is as early, and each start paid for.
    """
    needed = np.maximum(least, needed_replicas(load, tuning, service))
    ahead = max(1, math.ceil(service.start_s + service.node_s))
    padded = np.concatenate([needed, np.full(ahead, needed[-1])])
    windows = np.lib.stride_tricks.sliding_window_view(padded, ahead + 1)[: len(needed)]
    return windows.max(axis=1)


def _snapshot(
    fleet: Fleet,
    second: int,
    seen: Second,
    arrived: deque[int],
    refused: deque[int],
    least: int,
    most: int,
) -> Snapshot:
    count = max(1, fleet.ready)
    report = {
        names.CAPACITY: float(fleet.service.capacity),
        names.RUNNING: seen.streams / count,
        names.WAITING: seen.waiting / count,
        names.ARRIVALS: sum(arrived) / len(arrived) / count,
        names.SERVICE: fleet.kept_s,
        names.KV: min(1.0, seen.streams / count / fleet.service.capacity),
    }
    if seen.first_audio_s:
        report[names.FIRST_AUDIO] = max(first_s for first_s, _ in seen.first_audio_s)
    load = StageLoad(
        fleet.ready, fleet.target, least, most, seen.streams + seen.waiting,
        (report,) * fleet.ready,
    )  # fmt: skip
    ingress = StageLoad(1, 1, reports=({names.REFUSED: sum(refused) / len(refused)},))
    return Snapshot(float(second), {STAGE: load, INGRESS: ingress})


def _with_counts(snapshot: Snapshot, second: int, fleet: Fleet) -> Snapshot:
    """What replicas said a while ago, with the numbers of replicas, which Serve knows at once."""
    old = snapshot.stages[STAGE]
    reports = (old.reports[:1] or ({},)) * fleet.ready
    if old.ready and fleet.ready:
        # Sums over replicas stay what they were.
        scaled = {
            key: value * old.ready / fleet.ready
            if key in (names.RUNNING, names.WAITING, names.ARRIVALS)
            else value
            for key, value in (old.reports[0] if old.reports else {}).items()
        }
        reports = (scaled,) * fleet.ready
    load = StageLoad(fleet.ready, fleet.target, old.least, old.most, old.requests, reports)
    return Snapshot(float(second), {STAGE: load, INGRESS: snapshot.stages[INGRESS]})
