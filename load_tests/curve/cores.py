"""How busy the processes of a server, and their threads, are; Linux only."""

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


@dataclass(frozen=True, slots=True)
class Busy:
    """Processor time taken so far, in seconds, by (kind, process, thread)."""

    at_s: float
    threads: dict[tuple[str, int, int], float]

    @classmethod
    def now(cls, found: Sequence[ServerProcess]) -> "Busy":
        threads = {}
        for process in found:
            for task in Path(f"/proc/{process.pid}/task").glob("[0-9]*"):
                with suppress(OSError, ValueError, IndexError):
                    text = (task / "stat").read_text(errors="replace")
                    fields = text[text.rindex(")") + 2 :].split()
                    seconds = (int(fields[_USER]) + int(fields[_SYSTEM])) * _TICK_S
                    threads[(process.kind, process.pid, int(task.name))] = seconds
        return cls(time.perf_counter(), threads)

    def since(self, before: "Busy") -> dict[str, Any]:
        """Cores busy in all and by kind, the fullest process and the fullest thread."""
        span_s = self.at_s - before.at_s
        kinds: dict[str, float] = defaultdict(float)
        processes: dict[tuple[str, int], float] = defaultdict(float)
        threads: dict[str, float] = defaultdict(float)
        for (kind, pid, thread), seconds in self.threads.items():
            share = (seconds - before.threads.get((kind, pid, thread), 0.0)) / span_s
            kinds[kind] += share
            processes[(kind, pid)] += share
            threads[kind] = max(threads[kind], share)
        fullest = max(processes, key=lambda key: processes[key], default=None)
        thread = max(threads, key=lambda key: threads[key], default=None)
        return {
            "cores": round(sum(kinds.values()), 2),
            "by_kind": {kind: round(share, 2) for kind, share in sorted(kinds.items())},
            "fullest_process": _said(fullest and fullest[0], fullest and processes[fullest]),
            "fullest_thread": _said(thread, thread and threads[thread]),
        }


def _said(kind: Any, share: Any) -> str:
    return "" if kind is None else f"{kind} {share:.2f}"
