"""How busy the processes of a server and their threads are, and the machine; Linux only."""

import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load_tests.servers.processes import ServerProcess

_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
# Of the fields of /proc/PID/stat behind the name: user and system time.
_USER, _SYSTEM = 11, 12
# Of those of the first line of /proc/stat.
_IDLE, _WAITING, _STOLEN = 3, 4, 7
_THREADS_SHOWN: Final = 3


@dataclass(frozen=True, slots=True)
class Taken:
    """By one thread so far, in seconds: of a processor, and of waiting for one to be free."""

    cpu_s: float = 0.0
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Busy:
    """What was taken so far, in seconds, by (kind, process, thread).

    machine: of all processors: what was taken, and what the host gave to others meanwhile.
    """

    at_s: float
    threads: dict[tuple[str, int, int], Taken]
    machine: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def now(cls, found: Sequence[ServerProcess]) -> "Busy":
        threads = {}
        for process in found:
            for task in Path(f"/proc/{process.pid}/task").glob("[0-9]*"):
                with suppress(OSError, ValueError, IndexError):
                    text = (task / "stat").read_text(errors="replace")
                    fields = text[text.rindex(")") + 2 :].split()
                    cpu_s = (int(fields[_USER]) + int(fields[_SYSTEM])) * _TICK_S
                    threads[(process.kind, process.pid, int(task.name))] = Taken(
                        cpu_s, _waited_s(task)
                    )
        return cls(time.perf_counter(), threads, _machine())

    def since(self, before: "Busy") -> dict[str, Any]:
        """Cores busy in all and by kind, the fullest process and the fullest thread; each process
        with its fullest threads and the share of time for which the one of them that waited most
        found no processor free; cores of the machine.
        """
        span_s = self.at_s - before.at_s
        kinds: dict[str, float] = defaultdict(float)
        processes: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        for key, taken in self.threads.items():
            kind, pid, _ = key
            had = before.threads.get(key, Taken())
            share = (taken.cpu_s - had.cpu_s) / span_s
            kinds[kind] += share
            processes[(kind, pid)].append((share, (taken.waited_s - had.waited_s) / span_s))
        told = [_process(*key, threads) for key, threads in sorted(processes.items())]
        fullest = max(told, key=lambda each: each["cores"], default=None)
        thread = max(told, key=lambda each: each["threads"][:1], default=None)
        busy_s, stolen_s = (
            after - so_far for after, so_far in zip(self.machine, before.machine, strict=True)
        )
        return {
            "cores": round(sum(kinds.values()), 2),
            "by_kind": {kind: round(share, 2) for kind, share in sorted(kinds.items())},
            "fullest_process": _said(fullest and fullest["kind"], fullest and fullest["cores"]),
            "fullest_thread": _said(thread and thread["kind"], thread and thread["threads"][0]),
            "processes": told,
            "machine": {"busy": round(busy_s / span_s, 2), "stolen": round(stolen_s / span_s, 2)},
        }


def _process(kind: str, pid: int, threads: Sequence[tuple[float, float]]) -> dict[str, Any]:
    fullest = sorted((share for share, _ in threads), reverse=True)[:_THREADS_SHOWN]
    return {
        "kind": kind,
        "pid": pid,
        "cores": round(sum(share for share, _ in threads), 2),
        "threads": [round(share, 2) for share in fullest],
        "waited": round(max(waited for _, waited in threads), 3),
    }


def _waited_s(task: Path) -> float:
    """0 where the kernel does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int((task / "schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _machine() -> tuple[float, float]:
    with suppress(OSError, ValueError, IndexError):
        line = Path("/proc/stat").read_text().splitlines()[0]
        ticks = [int(each) for each in line.split()[1:9]]
        busy = sum(ticks) - ticks[_IDLE] - ticks[_WAITING] - ticks[_STOLEN]
        return busy * _TICK_S, ticks[_STOLEN] * _TICK_S
    return 0.0, 0.0


def _said(kind: Any, share: Any) -> str:
    return "" if kind is None else f"{kind} {share:.2f}"
