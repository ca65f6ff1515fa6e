"""What the processes of a server hold and take, looked at while it is under load; Linux only."""

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from load_tests.servers.processes import usage

_PERIOD_S: Final = 1.0


@dataclass(slots=True)
class MemoryLog:
    """Readings (absolute time, MiB, descriptors) of all processes together.

    Args:
        find: their ids; called on a thread.
    """

    find: Callable[[], Iterable[int]]
    readings: list[tuple[float, float, int]] = field(default_factory=list)

    async def run(self) -> None:
        while True:
            reading = await asyncio.to_thread(self._read)
            if reading is not None:
                self.readings.append(reading)
            await asyncio.sleep(_PERIOD_S)

    def _read(self) -> tuple[float, float, int] | None:
        taken = [used for pid in self.find() if (used := usage(pid)) is not None]
        if not taken:
            return None
        rss_mib = sum(used.rss_mib for used in taken)
        return time.perf_counter(), rss_mib, sum(used.descriptors for used in taken)

    def between(self, begin_s: float, end_s: float) -> list[float]:
        """MiB of the readings in a span."""
        return [rss_mib for at_s, rss_mib, _ in self.readings if begin_s <= at_s <= end_s]


def growth_mib(readings: Sequence[float]) -> float | None:
    """How much more the last third holds than the second, by their medians; None of too few.

    The first third is left out: pools, caches and buffers fill once.
    """
    third = len(readings) // 3
    if third < 2:
        return None
    second, last = readings[third : 2 * third], readings[-third:]
    return statistics.median(last) - statistics.median(second)


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds: of processes together, and of the whole machine that nobody took."""

    at_s: float
    taken_s: float
    idle_s: float

    @classmethod
    def now(cls, pids: Iterable[int]) -> "Cpu":
        per_s = os.sysconf("SC_CLK_TCK")
        idle = sum(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[4:6]))
        return cls(time.perf_counter(), sum(map(_ticks, pids)) / per_s, idle / per_s)

    def since(self, before: "Cpu") -> tuple[float, float]:
        """Cores that the processes took, and the share of the machine's time that was idle."""
        seconds = self.at_s - before.at_s
        idle = (self.idle_s - before.idle_s) / seconds / (os.cpu_count() or 1)
        return (self.taken_s - before.taken_s) / seconds, idle


def _ticks(pid: int) -> int:
    try:
        text = (Path("/proc") / str(pid) / "stat").read_text(errors="replace")
    except OSError:  # ended meanwhile
        return 0
    user, system = text[text.rindex(")") + 2 :].split()[11:13]
    return int(user) + int(system)


def tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "stat").read_text(errors="replace")
        except OSError:  # ended meanwhile
            continue
        parent = int(text[text.rindex(")") + 2 :].split()[1])
        children.setdefault(parent, []).append(int(folder.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found
