"""The HAProxy that serves while Serve's own is away.

Serve learns of the death of its HAProxy from health checks, seconds apart, and then starts an actor
that starts another one. Until that one knows where requests go, one that nobody of Serve's knows
listens to the same ports, by the same configuration but for the socket that Serve asks.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from serve_app.launch.keeper.admin import ask, listens, statistics
from serve_app.launch.keeper.hung import Stopped
from serve_app.launch.keeper.proxies import PIDS, PROGRAM, STAND_IN, is_haproxy

_ADMIN: Final = "admin.sock"
_CONFIG: Final = "haproxy.cfg"
_ROUTES: Final = "use_backend"
# What another one was told of servers a while ago.
_STATE: Final = ("server-state-file", "load-server-state-from-file", "server-state-base")
_STARTS_EVERY_S: Final = 1.0
# Of the frontends and backends themselves, in its statistics.
_SUMS: Final = ("FRONTEND", "BACKEND")


class Watch:
    """Looks after the HAProxies with files in `folder`; a call is a look, several times a second.

    * One that has been stopped is continued at the second look: it hears of nothing meanwhile, and
      its clients of nobody else. One whose threads hang ends itself.
    * Where none takes Serve's questions any more, a stand-in is started.
    * Once one does that has servers, all others finish what they have: the stand-in, and what an
      actor has left that has gone.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say
        self._stopped = Stopped(say)
        self._settled: set[int] = set()
        self._was_there = False
        self._started_s = float("-inf")

    def __call__(self) -> None:
        pids = [*running(self._folder)]
        self._stopped(pids)
        own = next((p for p in self._folder.glob(f"*/{_ADMIN}") if p.parent.name != STAND_IN), None)
        if own is not None and listens(own):
            self._was_there = True
            if self._settled != {*pids}:
                self._retire(own, pids)
        elif own is not None and self._was_there:
            self._stand_in(own.parent)

    def _stand_in(self, own: Path) -> None:
        place, now_s = self._folder / STAND_IN, time.monotonic()
        if listens(place / _ADMIN) or now_s - self._started_s < _STARTS_EVERY_S:
            return
        if not (self._folder / PROGRAM).exists():  # the server ends
            return
        text = (own / _CONFIG).read_text()
        place.mkdir(exist_ok=True)
        if _ROUTES in text or not (place / _CONFIG).exists():
            lines = (line for line in text.splitlines() if line.split()[:1] not in _STATE_LINES)
            text = "\n".join([*lines, ""]).replace(f"{own}/{_ADMIN}", f"{place}/{_ADMIN}")
            (place / _CONFIG).write_text(text)
        self._started_s = now_s
        self._say("HAProxy has ended: another one serves until Serve has started its own again")
        subprocess.Popen(
            [self._folder / PROGRAM, "-db", "-f", place / _CONFIG],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _retire(self, own: Path, pids: list[int]) -> None:
        """Have those finish in whose place the one that listens at `own` is."""
        stand_ins = {*running(self._folder, STAND_IN)}
        with suppress(OSError, StopIteration):
            serving = _pid(own)
            began = _began(serving)
            late = [pid for pid in pids if _began(pid) > began and pid not in stand_ins]
            if late or not _has_servers(own):  # which are about to take its place
                return
            for pid in pids:
                if pid != serving:  # those that Serve has told so hear it again
                    os.kill(pid, signal.SIGUSR1)
            self._settled = {*pids}


_STATE_LINES: Final = tuple([word] for word in _STATE)


def running(folder: Path, below: str = "") -> Iterator[int]:
    """The HAProxies that have been started with a file in `folder`, and in the one `below` it, and
    have not ended.
    """
    for file in (folder / PIDS).glob("*"):
        try:
            found = is_haproxy(Path("/proc") / file.name, folder / below)
        except OSError:
            found = False
        if found:
            yield int(file.name)
        elif not below:
            file.unlink(missing_ok=True)


def _has_servers(path: Path) -> bool:
    return any(
        row["svname"] not in _SUMS and row["status"].startswith("UP") for row in statistics(path)
    )


def _pid(path: Path) -> int:
    lines = ask(path, "show info").splitlines()
    return next(int(line.partition(":")[2]) for line in lines if line.startswith("Pid:"))


def _began(pid: int) -> int:
    """In clock ticks since the machine started; of one that has ended, later than any."""
    fields = _fields(pid)
    return int(fields[19]) if fields else 1 << 62


def _fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none of one that has ended."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
