"""Sends the signals, and sees what became of the server."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from load_tests.chaos.schedule import Blow
from load_tests.chaos.watch import HOLD_S, Watch, healed_at
from load_tests.servers.child import say
from load_tests.servers.processes import ServerProcess, replicas_of, signal_to

Overlap = Literal["kinds", "all"]
OVERLAPS: Final[tuple[Overlap, ...]] = get_args(Overlap)
_LOOK_S: Final = 0.25


@dataclass(slots=True)
class Strike:
    """One blow that was dealt; times of `time.perf_counter`.

    before: processes of its kind that there were.
    healed_s: seconds until the server was whole again; None if that was not seen.
    """

    blow: Blow
    at_s: float
    pid: int
    before: int
    healed_s: float | None = None


@dataclass(slots=True)
class Killer:
    """Deals `blows` one after the other.

    Args:
        find: the processes of the server; called on a thread.
        watch: what tells whether the server is whole.
        overlap: whether the next blow falls though the last one has not healed: "kinds", of another
            kind of replica, so that none is lost while the one beside it is away; or "all".
        heal_timeout_s: waited for healing at most; then the next one falls anyway.
    """

    blows: Sequence[Blow]
    find: Callable[[], Sequence[ServerProcess]]
    watch: Watch
    overlap: Overlap | None = None
    heal_timeout_s: float = 180.0
    clock: Callable[[], float] = time.perf_counter
    strikes: list[Strike] = field(default_factory=list)
    stopped: list[ServerProcess] = field(default_factory=list)

    async def run(self) -> None:
        """Return when all blows were dealt and have healed, as far as that is waited for."""
        # The last one of each kind of replica.
        healing: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            for blow in self.blows:
                await asyncio.sleep(blow.wait_s)
                kind = replicas_of(blow.kind)
                if self.overlap == "kinds" and kind in healing:
                    await healing[kind]
                following = await self._deal(blow)
                if following is not None:
                    healing[kind] = group.create_task(following)
                    if self.overlap is None:
                        await healing[kind]

    def release(self) -> None:
        """Continue what is still stopped: nothing is to outlive the run like that."""
        for process in self.stopped:
            signal_to(process, signal.SIGCONT)
        self.stopped.clear()

    async def _deal(self, blow: Blow):
        """Strike; what to await for its healing, None where nobody of that kind was there."""
        deadline_s = self.clock() + self.heal_timeout_s
        while True:
            found = await asyncio.to_thread(self.find)
            victims = sorted(
                (p for p in found if p.kind == blow.kind and not p.stopped),
                key=lambda process: process.pid,
            )
            if victims:
                victim = victims[blow.choose(len(victims))]
                if signal_to(victim, blow.number):
                    break
            if self.clock() > deadline_s:
                say(f"no process of {blow.kind} to strike")
                return None
            await asyncio.sleep(_LOOK_S)
        strike = Strike(blow, self.clock(), victim.pid, len(victims))
        self.strikes.append(strike)
        say(f"{blow.label} to {blow.kind} {victim.pid}, one of {len(victims)}")
        if blow.number == signal.SIGSTOP:
            self.stopped.append(victim)
        return self._heal(strike, victim)

    async def _heal(self, strike: Strike, victim: ServerProcess) -> None:
        """Wait until the server is whole again."""
        since_s = strike.at_s
        if strike.blow.hang_s is not None:
            await asyncio.sleep(strike.blow.hang_s)
            signal_to(victim, signal.SIGCONT)
            self.stopped.remove(victim)
            since_s = self.clock()
        wanted = strike.before
        while self.clock() - strike.at_s < self.heal_timeout_s + HOLD_S:
            await asyncio.sleep(_LOOK_S)
            at_s = healed_at(
                self.watch.readings, since_s, strike.blow.kind, wanted, alone=bool(self.overlap)
            )
            if at_s is not None:
                strike.healed_s = at_s - strike.at_s
                say(f"whole again {strike.healed_s:.1f} s after it")
                return
        say(f"not whole again after {self.clock() - strike.at_s:.0f} s")
