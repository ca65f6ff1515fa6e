"""What a start costs: ready after how long, what replicas did until then, and the processor time.

    python -m load_tests.start --placements split fused --times 2

starts the server with a placement's config file and the embedded checkpoint, or another, waits for
`/ready` and ends it. Other work on the machine makes the wall time longer and the processor time
hardly, so that is what to compare where a machine is not quiet. Linux only.
"""

import argparse
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from load_tests.reports import circumstances, files
from load_tests.servers.child import free_port, say, write_checkpoint
from load_tests.servers.measured import CACHES
from load_tests.servers.processes import Spent, spent
from load_tests.servers.server import (
    Server,
    ServerFailed,
    cache_environment,
    keep,
    marked,
    serving,
    show,
)
from load_tests.servers.settings import CONFIGS, configured
from load_tests.servers.starts import ReplicaStart, replica_starts

_PERIOD_S: Final = 0.25


@dataclass(slots=True)
class Process:
    """What is known of one process; times in seconds after the launcher's start.

    cpu_s: user and system time of it, and of the children that it has waited for.
    """

    pid: int
    kind: str
    first_s: float
    cpu_s: float = 0.0
    last_s: float = 0.0


@dataclass(slots=True)
class Start:
    """One start, until ready.

    busy: share of the machine's processors used meanwhile by anybody.
    caches_empty: whether compilers had left nothing in `--caches`; None where nobody looked.
    """

    placement: str
    caches_empty: bool | None = None
    ready_s: float | None = None
    busy: float = 0.0
    processes: list[Process] = field(default_factory=list)
    replicas: list[ReplicaStart] = field(default_factory=list)

    @property
    def cpu_s(self) -> float:
        return sum(process.cpu_s for process in self.processes)

    def markdown(self) -> str:
        ready = "never ready" if self.ready_s is None else f"ready after {self.ready_s:.1f} s"
        kinds: dict[str, list[Process]] = defaultdict(list)
        for process in self.processes:
            kinds[process.kind].append(process)
        rows = sorted(kinds.items(), key=lambda row: -sum(p.cpu_s for p in row[1]))
        lines = [
            f"{self.placement}: {ready}{CACHES[self.caches_empty]}, {self.cpu_s:.1f} s of processor"
            f" time in {len(self.processes)} processes, machine {100 * self.busy:.0f} % busy\n",
            *(f"- {replica.text()}" for replica in self.replicas),
            "",
            "| process | number | processor time, s | begun after, s |",
            "|---|---:|---:|---:|",
            *(
                f"| {kind} | {len(some)} | {sum(p.cpu_s for p in some):.1f}"
                f" | {', '.join(f'{p.first_s:.1f}' for p in some[:6])} |"
                for kind, some in rows
            ),
        ]
        return "\n".join([*lines, ""])


class Watch:
    """Samples the processes of a server from a thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._found: dict[tuple[int, int], Process] = {}

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def end(self) -> list[Process]:
        """No more samples; what was found."""
        self._ended.set()
        self._thread.join()
        return sorted(self._found.values(), key=lambda process: process.first_s)

    def _watch(self) -> None:
        while not self._ended.is_set():
            for process in spent(marked(self._server.mark)):
                self._note(process, time.monotonic() - self._server.started_s)
            self._ended.wait(_PERIOD_S)

    def _note(self, process: Spent, now_s: float) -> None:
        known = self._found.setdefault(
            (process.pid, process.started), Process(process.pid, process.kind, round(now_s, 2))
        )
        # A worker that waits for its task becomes a replica.
        known.kind, known.cpu_s, known.last_s = process.kind, process.cpu_s, now_s


def measure(args: argparse.Namespace, placement: str) -> Start:
    config = configured(placement, args.override, None, args.profile)
    env = dict(pair.split("=", 1) for pair in args.env)
    start = Start(placement)
    if args.caches:
        env = {**cache_environment(args.caches), **env}
        start.caches_empty = not any(args.caches.glob("*/*"))
    port = args.port or free_port()
    before = _machine()
    with serving(config, args.checkpoint, port, env) as server, Watch(server) as watch:
        try:
            start.ready_s = server.wait_until_ready(args.ready_timeout)
        except ServerFailed as error:
            say(str(error))
            show(server)
        after = _machine()
        start.processes = watch.end()
        start.replicas = replica_starts(server)
        if args.keep_logs:
            keep(server, args.keep_logs / f"{placement}.log")
    start.busy = 1 - (after[0] - before[0]) / max(1, after[1] - before[1])
    return start


def _machine() -> tuple[int, int]:
    """Ticks that all processors have been idle, and all ticks, since boot."""
    fields = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return fields[3] + fields[4], sum(fields)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.start", description=__doc__)
    parser.add_argument("--placements", nargs="+", choices=tuple(CONFIGS), default=["split"])
    parser.add_argument("--times", type=int, default=1, help="starts of each")
    parser.add_argument("--checkpoint", type=Path, help="folder; default: the embedded one")
    parser.add_argument("--size", help="write a random checkpoint of this size to --checkpoint")
    parser.add_argument("--profile", help="default: that of the config file")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--ready-timeout", type=float, default=300.0, help="s")
    parser.add_argument("--caches", type=Path, help="folder for what compilers keep")
    parser.add_argument("--keep-logs", type=Path, help="folder for the server's logs")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    # As `make serve` has it: with byte code that an earlier start has left.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    args = parse(arguments)
    if args.size and not args.checkpoint:
        say("--size needs --checkpoint")
        return 2
    if args.size and not args.checkpoint.exists():
        write_checkpoint(args.checkpoint, args.size, "cuda" if circumstances.gpus() else "cpu")
    starts: list[Start] = []
    for placement in args.placements:
        for _ in range(args.times):
            starts.append(measure(args, placement))
            say(starts[-1].markdown())
            if args.out:
                files.write_json(args.out, {"starts": [asdict(start) for start in starts]})
    return int(any(start.ready_s is None for start in starts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
