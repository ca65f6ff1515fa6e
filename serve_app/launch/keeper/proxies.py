"""The processes of one server, of which HAProxy is nobody's child once Ray has gone."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

# In the folder of a server: what Serve takes for HAProxy.
PROGRAM: Final = "haproxy"
# There as well: a file for each HAProxy, by its process id, and the stand-in's folder.
PIDS: Final = "pids"
STAND_IN: Final = "stand-in"
# In the environment of all that a launcher starts: that folder.
MARK: Final = "TTS_SERVER_FOLDER"
_LOOK_EVERY_S: Final = 0.05
_GIVE_UP_S: Final = 5.0
# A process that is about to run another program has no environment for a moment, and on a busy
# machine the moment is as long as somebody else's turn.
_QUIET_S: Final = 0.5


def start_no_more(folder: Path) -> None:
    """From now on nobody can start an HAProxy, for want of the program that Serve takes for it."""
    (folder / PROGRAM).unlink(missing_ok=True)


def end_all(folder: Path) -> None:
    """Kill all processes of the server with this folder, until none has been seen for a while."""
    start_no_more(folder)
    seen_s = now_s = began_s = time.monotonic()
    while now_s < min(seen_s + _QUIET_S, began_s + _GIVE_UP_S):
        for pid in _running(folder):
            seen_s = now_s
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LOOK_EVERY_S)
        now_s = time.monotonic()


def _running(folder: Path) -> Iterator[int]:
    """The marked processes, and the HAProxies that a cluster of others has started."""
    is_ours = marked(folder)
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # what has ended meanwhile
            if is_ours(process) or is_haproxy(process, folder):
                yield int(process.name)


def marked(folder: Path) -> Callable[[Path], bool]:
    """Whether a process (its folder in /proc) has been started by the server with this folder."""
    mark = f"{MARK}={folder}".encode()

    def is_marked(process: Path) -> bool:
        try:
            return mark in (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            return False

    return is_marked


def is_haproxy(process: Path, folder: Path) -> bool:
    """Whether this process (its folder in /proc) is configured by a file in `folder`.

    Raises:
        OSError: there is no such process.
    """
    words = (process / "cmdline").read_bytes().split(b"\0")
    file = words[words.index(b"-f") + 1] if b"-f" in words[:-1] else b""
    return file.startswith(f"{folder}/".encode())
