"""Processes that hold clients' connections and have come to a standstill.

Nobody can resume their streams elsewhere, so they are not to be killed for being slow, as Serve
does after a minute without an answer. The kernel tells the difference: the thread of an event loop
that waits is woken by its timers, one that waits for the interpreter's lock asks for it again and
again, and one that works or waits for a processor is ready to run. Only a thread that is stuck
sleeps without being woken once.
"""

import os
import re
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from serve_app.launch.keeper.proxies import marked

# In the folder of a server: a file for each event loop, by its process id, with its thread's.
LOOPS: Final = "loops"
# Six seconds at least, of event loops that do something every second; where looks are late, as on a
# busy machine or one that was suspended, so much more.
_STILL_LOOKS: Final = 24
_ALONE: Final = re.compile(rb"ray::(ServeController|HAProxyManager)|[^\0]*/(gcs_server|raylet)\0")


class Stopped:
    """Continues processes that have been stopped (SIGSTOP) at the second look at them."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._seen: set[int] = set()

    def __call__(self, pids: Iterable[int]) -> None:
        stopped = {pid for pid in pids if _status(pid, pid).get("State", "").startswith("T")}
        for pid in stopped & self._seen:
            self._say(f"process {pid} was stopped and is continued")
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._seen = stopped


class Alone:
    """Continues, once stopped, what a server has one of and nothing replaces: Ray's GCS and raylet,
    Serve's controller and the actor of HAProxy. Stages are left to Serve, and to their replicas. A
    call is a look.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._mark = marked(folder)
        self._stopped = Stopped(say)
        # Of each process whether it is the server's, which never changes.
        self._ours: dict[str, bool] = {}

    def __call__(self) -> None:
        pids = [entry for entry in os.listdir("/proc") if entry.isdigit()]
        self._ours = {
            pid: self._ours[pid] if pid in self._ours else self._mark(Path("/proc") / pid)
            for pid in pids
        }
        self._stopped(int(pid) for pid in pids if self._ours[pid] and _is_alone(pid))


def _is_alone(pid: str) -> bool:
    try:
        command = (Path("/proc") / pid / "cmdline").read_bytes()
    except OSError:
        return False
    return _ALONE.match(command) is not None


class Loops:
    """Kills processes whose event loop stands still; a call is a look.

    Args:
        folder: of the server.
        looks: in so many in a row nothing may have happened.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], looks: int = _STILL_LOOKS) -> None:
        self._files = folder / LOOPS
        self._say = say
        self._looks = looks
        self._stopped = Stopped(say)
        # What each thread had done when it was last seen to do something, and the looks since then.
        self._still: dict[int, tuple[str, int]] = {}

    def __call__(self) -> None:
        before, self._still = self._still, {}
        for file in self._files.glob("*"):
            status = _status(int(file.name), int(file.read_text() or file.name))
            if not status:  # it has ended
                file.unlink(missing_ok=True)
                continue
            pid, done = int(file.name), _done(status)
            last, looks = before.get(pid, ("", 0))
            looks = looks + 1 if last == done and status["State"].startswith("S") else 0
            self._still[pid] = (done, looks)
            if looks >= self._looks:
                self._say(f"process {pid} hangs and is killed: its event loop stands still")
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self._stopped(self._still)


def _done(status: dict[str, str]) -> str:
    """How often a thread has gone to sleep, and has been made to wait."""
    return f"{status['voluntary_ctxt_switches']} {status['nonvoluntary_ctxt_switches']}"


def _status(pid: int, thread: int) -> dict[str, str]:
    """What /proc says of a thread; nothing of one that has ended."""
    try:
        text = (Path("/proc") / str(pid) / "task" / str(thread) / "status").read_text()
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in lines}
