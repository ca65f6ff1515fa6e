"""The load of a step up and back, a change of the settings meanwhile, and what came of it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from load_tests.chaos.changes import Changed, Operator
from load_tests.chaos.loads import Driver, ended
from load_tests.chaos.outcomes import Turn, by_phase
from load_tests.reports import chaos_report
from load_tests.scaling.trace import (
    apart_s,
    decisions,
    first_audio_steps,
    replica_steps,
    stream_steps,
)
from load_tests.servers.child import say
from load_tests.servers.processes import STAGES as PROCESSES
from load_tests.servers.processes import descendants
from load_tests.servers.server import Server
from load_tests.servers.steering import Steering
from serve_app.serve_config import STAGES

# Of what is left while one replica of each stage is replaced: its streams find room, and the policy
# gives nothing back.
_UPDATE_SHARE: Final = 0.8
UPDATE: Final = "update"
_SETTLE_S: Final = 3.0
_LOOK_S: Final = 3.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The loads, in streams and seconds; `back_s` at most.

    most: replicas of each stage that there is room for.
    capacity: streams of a replica.
    """

    placement: str
    most: int
    capacity: int
    base: int
    streams: int
    base_s: float
    step_s: float
    back_s: float

    @property
    def stages(self) -> list[str]:
        return [name for name in STAGES[self.placement] if name != "Ingress"]

    @property
    def update_streams(self) -> int:
        return max(1, round(_UPDATE_SHARE * self.capacity * (self.most - 1)))


@dataclass(slots=True)
class StepOfLoad:
    """One run against one server.

    operator: makes the update; None: there is none.
    save: gets the result so far after each load: plain values.
    """

    plan: Plan
    server: Server
    steering: Steering
    driver: Driver
    operator: Operator | None
    save: Callable[[dict[str, Any]], object]
    _turns: list[Turn] = field(default_factory=list)
    _changes: list[Changed] = field(default_factory=list)
    _nodes: list[list[str]] = field(default_factory=list)
    _began_s: float = 0.0
    _began_utc_s: float = 0.0
    _seen: int = 0

    async def run(self) -> dict[str, Any]:
        """Put the load on; what came of it."""
        if self.driver.references.wanted:
            self._done(await self.driver.learn())
        self._began_s, self._began_utc_s = time.perf_counter(), time.time()
        self._seen = len(self.steering.readings)
        plan = self.plan
        for name, streams, seconds in (
            ("before", plan.base, plan.base_s),
            ("step", plan.streams, plan.step_s),
        ):
            turn = Turn(name, time.perf_counter())
            await self.driver.steady(turn, turn.begin_s + seconds, streams)
            self._nodes = sets_of(self.server)
            self._done(turn)
        if self.operator is not None:
            change = self.operator.make(UPDATE, 0, self._changes)
            streams = plan.update_streams
            self._done(await self.driver.during(UPDATE, change, _SETTLE_S, streams))
        await self._back()
        return self.result()

    async def _back(self) -> None:
        """Little load, until one replica of each stage is left."""
        turn = Turn("after", time.perf_counter())
        while time.perf_counter() - turn.begin_s < self.plan.back_s:
            # Streams begin all the while, so that replicas are taken away under streams.
            await self.driver.steady(turn, time.perf_counter() + _LOOK_S, self.plan.base)
            last = self.steering.readings[-1].target
            if all(last.get(name, 0) <= 1 for name in self.plan.stages):
                break
        self._done(turn)

    def _done(self, turn: Turn) -> None:
        self._turns.append(ended(turn))
        say(chaos_report.turn_line(turn))
        if self._began_s:
            self.save(self.result())

    def result(self) -> dict[str, Any]:
        """Of the loads that there were; plain values, times in seconds since the first of them."""
        began_s, stages, most = self._began_s, self.plan.stages, self.plan.most
        running, target = replica_steps(self.steering.readings[self._seen :], began_s)
        turns = {turn.phase: turn for turn in self._turns if turn.begin_s >= began_s}
        outcomes = [outcome for turn in turns.values() for outcome in turn.outcomes]
        opened, waiting = stream_steps(outcomes, began_s)
        end_s = time.perf_counter() - began_s
        begins_s = {name: turn.begin_s - began_s for name, turn in turns.items()}
        step_s, after_s = begins_s.get("step", end_s), begins_s.get("after")
        updates = [
            (turn.begin_s - began_s, turn.end_s - began_s)
            for name, turn in turns.items()
            if name == UPDATE
        ]
        log = "\n".join(path.read_text(errors="replace") for path in _controller_logs(self.server))
        return {
            "stages": stages,
            "most": most,
            "end_s": end_s,
            "phases": [asdict(figures) for figures in by_phase(self._turns)],
            "turns": [
                {"name": t.phase, "begin_s": t.begin_s - began_s, "end_s": t.end_s - began_s}
                for t in turns.values()
            ],
            "changes": [asdict(change) for change in self._changes],
            "running": {name: asdict(step) for name, step in running.items()},
            "target": {name: asdict(step) for name, step in target.items()},
            "streams": asdict(opened),
            "waiting": asdict(waiting),
            "first_audio_p95_s": asdict(first_audio_steps(outcomes, began_s)),
            "decisions": decisions(log, self._began_utc_s),
            "asked_after_s": {n: _since(target[n].first(most, step_s), step_s) for n in stages},
            "ready_after_s": {n: _since(running[n].first(most, step_s), step_s) for n in stages},
            "back_after_s": {
                n: None if after_s is None else _since(target[n].settled(1), after_s)
                for n in stages
            },
            "apart_s": apart_s(target, stages, end_s, updates),
            "nodes": self._nodes,
        }


def sets_of(server: Server) -> list[list[str]]:
    """What runs on each node but the head, by the kinds of its processes."""
    assert server.nodes is not None
    kinds = {process.pid: process.kind for process in server.processes()}
    kept = [name for names in PROCESSES.values() for name in names]
    return [
        sorted(kinds[pid] for pid in descendants(raylet) if kinds.get(pid) in kept)
        for raylet in server.nodes.workers
    ]


def _since(at_s: float | None, begin_s: float) -> float | None:
    return None if at_s is None else at_s - begin_s


def _controller_logs(server: Server) -> list[Path]:
    return [path for path in server.logs() if path.name.startswith("controller_")]
