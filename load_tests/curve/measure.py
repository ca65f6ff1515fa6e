"""What is measured at each number of GPUs, in one running server of one placement."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from load_tests.curve.added import as_json
from load_tests.curve.beside import account, watch
from load_tests.curve.figures import back_after_s, refused_apart
from load_tests.loops.fleet import Fleet, merged
from load_tests.loops.level import Level
from load_tests.loops.metrics import first_audio, quantiles
from load_tests.loops.runner import BurstLoop, ClosedLoop, OpenLoop, Plan, Run
from load_tests.loops.workload import Workload
from load_tests.reports import report
from load_tests.servers.child import say
from load_tests.servers.gpu_watch import GpuWatch
from load_tests.servers.late_kernels import late_kernels_of
from load_tests.servers.processes import ServerProcess, descendants, signal_to
from load_tests.servers.server import Server
from load_tests.servers.starts import replica_starts
from load_tests.servers.steering import Steering

# What is lost by a kill: the process that holds the talker.
_VICTIM: Final = {"fused": "fused child", "split": "talker"}
# What holds a stage.
_STAGES: Final = {
    "fused": ("fused child",),
    "split": ("talker", "code predictor", "speech decoder"),
}
# Of what a row has, that is too much for a line.
_LONG: Final = ("beside", "starts", "until_ready", "sets")
_CLOSED: Final = "closed, {} per GPU"
_OPEN: Final = "open, {:.0%}"
_BURST: Final = "burst, {} per GPU, {}"
_LOSS: Final = "loss of a replica"
_ENDLESS: Final = 1_000_000
_KILL: Final = 9


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the loads are; times in seconds.

    per_gpu: streams of the closed loops. rounds: requests per stream.
    open_share: of the requests per second that the largest closed loop made.
    added_share: of the same before replicas are added, for `added_s` or until they are ready.
    """

    per_gpu: tuple[int, ...] = (64, 256)
    rounds: int = 5
    open_share: float = 0.8
    open_s: float = 8.0
    warm_up_s: float = 2.0
    burst: int = 64
    bursts: int = 3
    loss_s: float = 30.0
    loss_after_s: float = 4.0
    added_share: float = 0.5
    added_s: float = 18.0
    ready_timeout_s: float = 240.0

    def plans(self, gpus: int) -> list[Plan]:
        """All but the open loop, whose rate is known only after the closed ones."""
        closed = [ClosedLoop(n * gpus, self.rounds * n * gpus) for n in self.per_gpu]
        bursts = [BurstLoop(self.burst * gpus, times=1)] * self.bursts
        return [*closed, *bursts]

    def names(self, gpus: int) -> list[str]:
        """Of all loads, in their order."""
        return [
            *(_CLOSED.format(n) for n in self.per_gpu),
            _OPEN.format(self.open_share),
            *(_BURST.format(self.burst, number + 1) for number in range(self.bursts)),
            *([_LOSS] if gpus > 1 else []),
        ]

    def least_s(self, name: str) -> float:
        """What a load takes at least, by its name: it is not begun where there is less."""
        if name == _LOSS:
            return self.loss_s
        return self.open_s + self.warm_up_s if name == _OPEN.format(self.open_share) else 2.0

    def seconds(self, gpus: int) -> float:
        """What one number of GPUs takes, about."""
        loss_s = self.loss_s + 5.0 if gpus > 1 else 0.0
        return 8.0 * len(self.per_gpu) + self.open_s + self.warm_up_s + 4.0 * self.bursts + loss_s


@dataclass(slots=True)
class Curve:
    """Measures one placement; `done` are rows that earlier calls have, as JSON."""

    server: Server
    steering: Steering
    fleet: Fleet
    workload: Workload
    placement: str
    scale: Scale
    stages: tuple[str, ...]
    done: Sequence[Mapping[str, Any]]
    save: Callable[[dict[str, Any]], None]
    find: Callable[[], Sequence[ServerProcess]]
    deadline_s: float
    gpu_watch: GpuWatch
    rates: dict[int, float] = field(default_factory=dict)
    late: Counter[str] = field(default_factory=Counter)

    def at(self, gpus: int) -> bool:
        """Everything at so many GPUs, each of which has a replica; False where time ran out."""
        missing = waiting(self.scale, self.done, self.placement, gpus)
        for name, run in self._loads(gpus):
            if name not in missing:
                continue
            if time.perf_counter() + self.scale.least_s(name) > self.deadline_s:
                return False
            self._keep(gpus, name, run)
        return True

    def once_through(self, gpus: int) -> None:
        """So that no measured load is the first that a replica gets."""
        streams = gpus * min(self.scale.per_gpu)
        self._run(ClosedLoop(streams, 2 * streams))

    def add(self, before: int, gpus: int) -> bool:
        """Go from `before` replicas to `gpus`, all at once, under an open load; False where it did
        not succeed.

        The row has the seconds from asking to each replica that was added, what they did until
        then, and what requests saw meanwhile, those until the last one was ready apart.
        """
        rate = self.rates.get(before) or self._known_rate(before) or 1.0
        plan = OpenLoop(self.scale.added_share * rate, self.scale.added_s, 0.0)
        known = self._known_logs()
        began_s = time.perf_counter()
        futures = self.fleet.begin(self.server.url, self.workload, plan)
        self.steering.set(dict.fromkeys(self.stages, gpus))
        ready_s: dict[str, list[float]] = {name: [] for name in self.stages}
        for count in range(before + 1, gpus + 1):
            for name in self.stages:
                # Of several stages the first to be waited for need not be the first to run.
                left_s = min(self.scale.ready_timeout_s, self.deadline_s - time.perf_counter())
                at_s = self.steering.wait_for({name: count}, left_s, since_s=began_s)
                if at_s is None:
                    say(f"{name}: {count} replicas were not ready in time")
                    merged(plan, [future.result() for future in futures])
                    return False
                ready_s[name].append(round(at_s - began_s, 2))
        run = merged(plan, [future.result() for future in futures])
        last_s = began_s + max(max(each, default=0.0) for each in ready_s.values())
        early = replace(run, results=[r for r in run.results if r.sent_at_s <= last_s])
        row = {
            "ready_s": ready_s,
            "starts": self._started_since(known),
            "until_ready": row_of(self.placement, gpus, "", early),
        }
        self._store(gpus, f"{before} -> {gpus} replicas", run, row)
        return True

    def _started_since(self, known: Collection[str]) -> list[dict[str, Any]]:
        """Of the replicas whose logs are not `known`."""
        return as_json([start for start in replica_starts(self.server) if start.log not in known])

    def _known_logs(self) -> set[str]:
        return {start.log for start in replica_starts(self.server)}

    def _loads(self, gpus: int) -> Iterator[tuple[str, Callable[[], tuple[Run, dict[str, Any]]]]]:
        """All loads by their names."""
        plans = self.scale.plans(gpus)
        closed = [plan for plan in plans if isinstance(plan, ClosedLoop)]
        bursts = [plan for plan in plans if isinstance(plan, BurstLoop)]
        measures = [
            *(lambda plan=plan: self._closed(plan, gpus) for plan in closed),
            lambda: self._open(gpus),
            *(lambda plan=plan: (self._run(plan), {}) for plan in bursts),
            *([lambda: self._loss(gpus)] if gpus > 1 else []),
        ]
        return zip(self.scale.names(gpus), measures, strict=True)

    def _closed(self, plan: ClosedLoop, gpus: int) -> tuple[Run, dict[str, Any]]:
        left_s = max(5.0, self.deadline_s - time.perf_counter())
        plan = replace(plan, max_s=left_s)
        futures = self.fleet.begin(self.server.url, self.workload, plan)
        beside = watch(futures, self.server.processes)
        run = merged(plan, [future.result() for future in futures])
        seen = account(run, beside, self.steering.looks, self.gpu_watch.readings)
        level = Level.of(run)
        self.rates[gpus] = level.summary.requests_per_s
        if not seen["work"]:
            say(f"nothing was seen of the replicas: {self.steering.not_seen or 'no look'}")
        return run, {"beside": seen, "sets": self._sets()}

    def _sets(self) -> dict[str, list[str]]:
        """The processes of the stages on each Ray node; nothing where there is one for all."""
        if self.server.nodes is None:
            return {}
        kinds = {p.pid: p.kind for p in self.find() if p.kind in _STAGES[self.placement]}
        return {
            f"node {number}": sorted(kinds[pid] for pid in descendants(raylet) if pid in kinds)
            for number, raylet in enumerate(self.server.nodes.workers, 1)
        }

    def _open(self, gpus: int) -> tuple[Run, dict[str, Any]]:
        rate = self.rates.get(gpus) or self._known_rate(gpus) or 1.0
        plan = OpenLoop(self.scale.open_share * rate, self.scale.open_s, self.scale.warm_up_s)
        return self._run(plan), {}

    def _loss(self, gpus: int) -> tuple[Run, dict[str, Any]]:
        """SIGKILL to one replica under the smallest closed load.

        Where its places are missed, its clients are refused, and wait as they are told.
        """
        streams = self.scale.per_gpu[0] * gpus
        known = self._known_logs()
        plan = ClosedLoop(streams, _ENDLESS, max_s=self.scale.loss_s)
        futures = self.fleet.begin(self.server.url, self.workload, plan, asks_again=True)
        time.sleep(self.scale.loss_after_s)
        kind = _VICTIM[self.placement]
        victims = sorted(
            (p for p in self.find() if p.kind == kind), key=lambda process: process.pid
        )
        killed_s = time.perf_counter()
        hit = bool(victims) and signal_to(victims[0], _KILL)
        said: dict[str, Any] = {"victim": kind, "hit": hit, "victims": len(victims)}
        gone_s = self._first_below(gpus, killed_s)
        wanted = dict.fromkeys(self.stages, gpus)
        # Also after the load: what comes next, such as more replicas, begins with all of these.
        left_s = min(self.scale.ready_timeout_s, self.deadline_s - time.perf_counter())
        ready_s = self.steering.wait_for(wanted, left_s, since_s=gone_s) if gone_s else None
        run = merged(plan, [future.result() for future in futures])
        usual, back_s = back_after_s((*run.warm_up, *run.results), run.window, killed_s)
        said |= {
            "usual_audio_s_per_s": usual,
            "back_after_s": back_s,
            "noticed_after_s": gone_s and gone_s - killed_s,
            "replaced_after_s": ready_s and ready_s - killed_s,
            "starts": self._started_since(known),
        }
        let_in, refusals = refused_apart(run.results)
        return replace(run, results=let_in), said | asdict(refusals)

    def _first_below(self, gpus: int, since_s: float) -> float | None:
        """When Serve first counted fewer than `gpus` replicas of a stage."""
        while time.perf_counter() < since_s + self.scale.loss_s / 2:
            for reading in reversed(self.steering.readings):
                if reading.at_s < since_s:
                    break
                if min(reading.running.get(name, 0) for name in self.stages) < gpus:
                    return reading.at_s
            time.sleep(0.1)
        return None

    def _run(self, plan: Plan) -> Run:
        return self.fleet.run(self.server.url, self.workload, plan)

    def _keep(
        self, gpus: int, name: str, measure: Callable[[], tuple[Run, dict[str, Any]]]
    ) -> None:
        run, more = measure()
        self._store(gpus, name, run, more)

    def _store(self, gpus: int, name: str, run: Run, more: dict[str, Any]) -> None:
        more |= {"late_kernels": self._late_kernels()}
        row = row_of(self.placement, gpus, name, run) | more
        shown = {n: value for n, value in more.items() if n not in _LONG and value != []}
        said = [str(shown)] if shown else []
        say(report.table_line([self.placement, str(gpus), *report.row(Level.of(run)), *said]))
        self.save(row)

    def _late_kernels(self) -> list[str]:
        """Those that were compiled after ready since the row before; warm-ups are among them."""
        now = Counter(late_kernels_of(self.server))
        found = list((now - self.late).elements())
        self.late |= now
        return found

    def _known_rate(self, gpus: int) -> float | None:
        rates = [
            row["requests_per_s"]
            for row in self.done
            if row["placement"] == self.placement
            and row["gpus"] == gpus
            and row["load"].startswith("closed")
        ]
        return rates[-1] if rates else None


def waiting(
    scale: Scale, rows: Sequence[Mapping[str, Any]], placement: str, gpus: int
) -> list[str]:
    """The loads at so many GPUs of which `rows` have nothing."""
    there = {row["load"] for row in rows if (row["placement"], row["gpus"]) == (placement, gpus)}
    return [name for name in scale.names(gpus) if name not in there]


def row_of(placement: str, gpus: int, name: str, run: Run) -> dict[str, Any]:
    """The figures of a run that the table shows; seconds.

    first_*: without the burst that a closed loop begins with, whose p95 is `begin_first_p95_s`.
    """
    figures = Level.of(run).summary
    begin = quantiles(first_audio(run.warm_up)) if isinstance(run.plan, ClosedLoop) else None
    rate = figures.audio_s_per_s_window
    lag = figures.clock_error_s if isinstance(run.plan, ClosedLoop) else figures.lag_s
    return {
        "placement": placement,
        "gpus": gpus,
        "load": name,
        "plan": run.plan.label,
        "requests": figures.requests,
        "failures": figures.failures,
        "failures_by_kind": figures.failures_by_kind,
        "first_detail": figures.first_detail,
        "first_p50_s": figures.first_playable_s.p50,
        "first_p95_s": figures.first_playable_s.p95,
        "begin_first_p95_s": begin.p95 if begin is not None else None,
        "audio_s_per_s": figures.audio_s_per_s if rate is None else rate,
        "requests_per_s": figures.requests_per_s,
        "dry_over_50_ms": figures.underruns_over_50_ms,
        "worst_gap_s": figures.longest_gap_s.p99,
        "client_lag_p99_s": lag.p99,
        "stopped": figures.stopped,
    }
