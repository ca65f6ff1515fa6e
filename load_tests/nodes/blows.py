"""What befalls a cluster under load, and how long it takes to be whole again."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from load_tests.chaos.killer import Strike
from load_tests.chaos.schedule import Blow
from load_tests.chaos.watch import HOLD_S, Watch, healed_at
from load_tests.servers.child import say
from load_tests.servers.nodes import Nodes
from load_tests.servers.processes import descendants
from load_tests.servers.server import Server

# node: a machine loses power; another comes a little later.
# raylet: only that process ends, and with it, by Ray's doing, what it has started.
# gcs: away for some seconds, then there again with what it had stored.
# controller: of Serve, which Ray starts again.
BLOWS: Final = ("node", "raylet", "gcs", "controller")
_GCS_DOWN_S: Final = 5.0
_NODE_AFTER_S: Final = 3.0
_LOOK_S: Final = 0.25
_HEAL_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Loss(Blow):
    """A blow by its own name."""

    name: str = ""

    @property
    def label(self) -> str:
        return self.name


class Blows:
    """Deals blows one after the other, each when the one before has healed."""

    def __init__(self, server: Server, watch: Watch, pause_s: float) -> None:
        assert server.nodes is not None
        self._server = server
        self._nodes: Nodes = server.nodes
        self._watch = watch
        self._pause_s = pause_s
        self.strikes: list[Strike] = []

    async def run(self, kinds: Sequence[str]) -> None:
        for kind in kinds:
            await asyncio.sleep(self._pause_s)
            if kind in ("node", "raylet"):
                await self._node(kind)
            elif kind == "gcs":
                await self._gcs()
            else:
                await self._controller()

    async def _node(self, kind: str) -> None:
        """Of a node that holds stages and no client's connection."""
        workers = self._spare_of_clients()
        if not workers:
            say("every node holds an ingress; none can be lost")
            return
        # What replaces a node comes last, so that each is lost once before any of these is.
        victim = workers[0]
        name = "node lost" if kind == "node" else "SIGKILL"
        strike = self._struck("raylet", victim, len(self._nodes.workers) + 1, name)
        if kind == "node":
            await asyncio.to_thread(self._nodes.lose, victim)
        else:
            os.kill(victim, signal.SIGKILL)
            await asyncio.sleep(_NODE_AFTER_S)
            await asyncio.to_thread(self._nodes.lose, victim)
        await asyncio.sleep(_NODE_AFTER_S)
        await asyncio.to_thread(self._nodes.add, self._nodes.rooms[victim])
        await self._heal(strike)

    async def _gcs(self) -> None:
        (pid,) = self._pids("gcs")
        strike = self._struck("gcs", pid, 1, f"away for {_GCS_DOWN_S:g} s")
        await asyncio.to_thread(self._nodes.restart_gcs, _GCS_DOWN_S)
        await self._heal(strike)

    async def _controller(self) -> None:
        (pid,) = self._pids("controller")
        strike = self._struck("controller", pid, 1)
        os.kill(pid, signal.SIGKILL)
        await self._heal(strike)

    def _spare_of_clients(self) -> list[int]:
        found = {process.pid: process.kind for process in self._server.processes()}
        kinds = {
            raylet: {found.get(pid) for pid in descendants(raylet)}
            for raylet in self._nodes.workers
        }
        return [
            raylet
            for raylet, there in kinds.items()
            if "ingress" not in there and there & {"fused", "talker", "speech decoder"}
        ]

    def _pids(self, kind: str) -> list[int]:
        return [process.pid for process in self._server.processes() if process.kind == kind]

    def _struck(self, kind: str, pid: int, before: int, name: str = "SIGKILL") -> Strike:
        loss = Loss(kind, signal.SIGKILL, 0.0, 0.0, name=name)
        strike = Strike(loss, time.perf_counter(), pid, before)
        self.strikes.append(strike)
        say(f"{name}: {kind} {pid}")
        return strike

    async def _heal(self, strike: Strike) -> None:
        while time.perf_counter() - strike.at_s < _HEAL_S:
            await asyncio.sleep(_LOOK_S)
            at_s = healed_at(self._watch.readings, strike.at_s, strike.blow.kind, strike.before)
            if at_s is not None:
                strike.healed_s = at_s - strike.at_s
                say(f"whole again {strike.healed_s:.1f} s after it")
                # Long enough for the next one to find a server that is whole.
                await asyncio.sleep(HOLD_S)
                return
        say(f"not whole again after {_HEAL_S:.0f} s")
