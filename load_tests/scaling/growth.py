"""Nodes that come and go under load, and what of them is used and asked for."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from load_tests.chaos.loads import Driver, ended
from load_tests.chaos.outcomes import BAD, Turn, by_phase
from load_tests.reports import chaos_report
from load_tests.reports.report import table_head, table_line
from load_tests.scaling.step import sets_of
from load_tests.servers.child import say
from load_tests.servers.looks import Look
from load_tests.servers.nodes import Room
from load_tests.servers.server import Server
from load_tests.servers.steering import Reading, Steering

# Until a node counts as gone by Ray, and by the policy, and until what was asked for is given back.
_NOTICED_S: Final = 30.0
_DRAINED_S: Final = 1800.0
# So long all is as it should be before a turn ends, looked at so often.
_HELD_S: Final = 15.0
_LOOK_S: Final = 1.0


@dataclass(slots=True)
class Growth:
    """One run: a node, two, one that is drained, two again, one that is lost.

    room: what the second node has.
    turn_s: the least that a turn takes; it goes on until all is as it should be.
    most_s: and no longer than that: a busy machine takes minutes to start a replica.
    save: gets the result so far after each turn: plain values.
    """

    server: Server
    steering: Steering
    driver: Driver
    stages: list[str]
    room: Room
    turn_s: float
    most_s: float
    save: Callable[[dict[str, Any]], object]
    _turns: list[Turn] = field(default_factory=list)
    _seen: list[dict[str, Any]] = field(default_factory=list)
    _settled_s: float = 0.0

    async def run(self) -> dict[str, Any]:
        nodes = self.server.nodes
        assert nodes is not None
        if self.driver.references.wanted:
            self._turns.append(ended(await self.driver.learn()))
        await self._turn("one node", 1)
        for leaves, go in (("drained", nodes.drain), ("lost", None)):
            added = nodes.add(self.room)
            await self._turn("a node joined", 2)
            if go is not None:
                go(added, _DRAINED_S)
            else:
                nodes.lose(added)
            await self._turn(f"it is {leaves}", 1)
            if go is not None:
                nodes.lose(added)
        return self.result()

    async def _turn(self, name: str, held: int) -> None:
        """Load until all is as it should be, `held` nodes being there."""
        turn = await self.driver.during(name, self._settled(held), 0.0)
        self._turns.append(turn)
        shared = _busy(self._looks(self._settled_s), self.stages)
        say(chaos_report.turn_line(turn))
        readings = [r for r in self.steering.readings if turn.begin_s <= r.at_s <= turn.end_s]
        late = [r for r in readings if r.at_s >= turn.begin_s + _NOTICED_S]
        self._seen.append(
            {
                "name": name,
                "held": held,
                "ran": self._most(late[-1:], "running"),
                "asked": self._most(late if held == 1 else readings, "asked"),
                "busy": len(shared),
                "health": await asyncio.to_thread(self._health),
                "ready_s": self._ready_s(readings, held, turn.begin_s),
                "took_s": turn.end_s - turn.begin_s,
                "sets": sets_of(self.server),
            }
        )
        self.save(self.result())

    async def _settled(self, held: int) -> None:
        """Return when replicas, their streams and health have been for a while as `held` nodes have
        it, or when there is no more time.
        """
        begin_s = good_s = time.perf_counter()
        while (now_s := time.perf_counter()) < begin_s + self.most_s:
            if not await self._is_good(held):
                good_s = now_s
            elif now_s >= max(begin_s + self.turn_s, good_s + _HELD_S):
                break
            await asyncio.sleep(_LOOK_S)
        self._settled_s = now_s

    async def _is_good(self, held: int) -> bool:
        (last,) = self.steering.readings[-1:] or (None,)
        if last is None or any(
            (last.running.get(name, 0), last.asked.get(name, 0)) != (held, held)
            for name in self.stages
        ):
            return False
        is_shared = len(_busy(self._looks(time.perf_counter()), self.stages)) == held
        return is_shared and await asyncio.to_thread(self._health) == "healthy"

    def _looks(self, until_s: float) -> list[Look]:
        """Those of the last seconds before then."""
        return [look for look in self.steering.looks if until_s - _HELD_S <= look.at_s <= until_s]

    def _most(self, readings: list[Reading], of: str) -> int:
        counts = [getattr(r, of).get(name, 0) for r in readings for name in self.stages]
        return max(counts, default=0)

    def _ready_s(self, readings: list[Reading], count: int, begin_s: float) -> float | None:
        """When each stage had so many replicas that run, since the beginning of the turn."""
        for reading in readings:
            if all(reading.running.get(name, 0) >= count for name in self.stages):
                return reading.at_s - begin_s
        return None

    def _health(self) -> str:
        try:
            with urllib.request.urlopen(f"{self.server.url}/health", timeout=10) as answer:
                return json.load(answer)["status"]
        except OSError as error:  # an answer of 503 as well
            return str(error)

    def result(self) -> dict[str, Any]:
        return {
            "phases": [asdict(figures) for figures in by_phase(self._turns)],
            "turns": self._seen,
        }


def _busy(looks: Iterable[Look], stages: Iterable[str]) -> set[str]:
    """Replicas of the stage that carries the streams which had any."""
    (carrier,) = {"Fused", "Talker"}.intersection(stages)
    return {
        replica
        for look in looks
        for replica, count in look.requests.get(carrier, {}).items()
        if count
    }


def faults(result: Mapping[str, Any]) -> list[str]:
    """What did not go as it should, in words."""
    found = []
    for turn in result["turns"]:
        if turn["ran"] != turn["held"]:
            found.append(f"{turn['name']}: {turn['ran']} replicas on {turn['held']} nodes")
        if turn["busy"] != turn["held"]:
            found.append(f"{turn['name']}: {turn['busy']} replicas had streams")
        if turn["health"] != "healthy":
            found.append(f"{turn['name']}: in the end the server was {turn['health']}")
        if turn["asked"] > turn["held"]:
            found.append(f"{turn['name']}: {turn['asked']} replicas were asked for")
    bad = sum(phase["fates"][fate] for phase in result["phases"] for fate in BAD)
    if bad:
        found.append(f"{bad} streams were lost, broken or unequal")
    return found


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A table of the turns."""
    head = (
        *("", "nodes", "replicas that ran", "had streams", "asked for"),
        *("all ran after s", "turn, s"),
    )
    yield from table_head(head)
    for turn in result["turns"]:
        ready = "never" if turn["ready_s"] is None else f"{turn['ready_s']:.1f}"
        counts = (str(turn[key]) for key in ("held", "ran", "busy", "asked"))
        yield table_line([turn["name"], *counts, ready, f"{turn['took_s']:.0f}"])
