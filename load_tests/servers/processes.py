"""The processes of a running server by what they hold, from /proc: Linux only.

Ray gives a replica's process the name of its deployment as its title, and the child of `fused` is
known by its command.
"""

import os
import re
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# In the order in which audio passes them; the code predictor beside the talker that it serves.
STAGES: Final = {
    "split": ("talker", "code predictor", "speech decoder"),
    "fused": ("fused", "fused child"),
}
DEPLOYMENTS: Final = {
    "Talker": "talker",
    "CodePredictor": "code predictor",
    "SpeechDecoder": "speech decoder",
    "Fused": "fused",
    "Ingress": "ingress",
}
# What else belongs to a server, by how its command begins or what it names.
_OTHERS: Final = (
    (re.compile(r"-m serve_app\.models\.fused\.process "), "fused child"),
    (re.compile(r"-m serve_app\.models\.fused\.standby "), "standby"),
    (re.compile(r"^ray::\w*ServeController"), "controller"),
    (re.compile(r"^ray::\w*Proxy"), "proxy"),
    (re.compile(r"^(\S*/)?haproxy "), "haproxy"),
    (re.compile(r"^(\S*/)?raylet/raylet |/raylet "), "raylet"),
    (re.compile(r"/gcs_server "), "gcs"),
    (re.compile(r"-m serve_app\.launch\.keeper "), "keeper"),
    (re.compile(r"-m serve_app(?: |$)"), "launcher"),
)
# What a standby calls itself once it holds the stages of a replica.
_TAKEN: Final = "tts-stages"
_REPLICA: Final = re.compile(r"^ray::ServeReplica:[^:]+:(\w+)")
_PAGE_MIB: Final = os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """One process; `started` (clock ticks since boot) tells it from a later one of the same id.

    stopped: by SIGSTOP, at the time when it was looked at.
    """

    pid: int
    kind: str
    started: int
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """What one process has taken."""

    rss_mib: float
    descriptors: int
    threads: int


@dataclass(frozen=True, slots=True)
class Spent:
    """The processor time of one process and of the children that it has waited for, in seconds.

    kind: as of `ServerProcess`; of one that is of no known kind, what its command begins with.
    """

    pid: int
    kind: str
    started: int
    cpu_s: float


def kind_of(command: str) -> str | None:
    """What a process with this command line, or title, is in a server; None if nothing known."""
    replica = _REPLICA.match(command)
    if replica:
        return DEPLOYMENTS.get(replica[1])
    return next((kind for pattern, kind in _OTHERS if pattern.search(command)), None)


def replicas_of(kind: str) -> str:
    """The kind of the replicas that need processes of this kind."""
    return "fused" if kind == "fused child" else kind


def processes(pids: Iterable[int]) -> Iterator[ServerProcess]:
    """Those of `pids` that live and are of a known kind."""
    for pid in pids:
        command = _command(pid)
        kind = kind_of(command) if command else None
        fields = _stat(pid) if kind else None
        if kind and fields and fields[0] != "Z":
            if kind == "standby" and _name(pid) == _TAKEN:
                kind = "fused child"
            yield ServerProcess(pid, kind, int(fields[19]), fields[0] == "T")


def is_alive(process: ServerProcess) -> bool:
    """Whether it is still this process, stopped or not, and no zombie."""
    fields = _stat(process.pid)
    return fields is not None and fields[0] != "Z" and int(fields[19]) == process.started


def signal_to(process: ServerProcess, number: int) -> bool:
    """Send a signal to this process and no other that got its id; whether it was there."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        # The id cannot be given away while the descriptor is open.
        if not is_alive(process):
            return False
        signal.pidfd_send_signal(descriptor, number)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def usage(pid: int) -> Usage | None:
    """None where the process has ended."""
    folder, fields = Path("/proc") / str(pid), _stat(pid)
    try:
        if fields is None:
            return None
        rss = int((folder / "statm").read_text().split()[1]) * _PAGE_MIB
        return Usage(rss, len(os.listdir(folder / "fd")), int(fields[17]))
    except (OSError, IndexError):
        return None


def spent(pids: Iterable[int]) -> Iterator[Spent]:
    """The processor time of those of `pids` that live, of any kind."""
    for pid in pids:
        command, fields = _command(pid), _stat(pid)
        if command and fields:
            ticks = sum(int(each) for each in fields[11:15])
            kind = kind_of(command) or _beginning(command)
            yield Spent(pid, kind, int(fields[19]), ticks / os.sysconf("SC_CLK_TCK"))


def _beginning(command: str) -> str:
    """The program, or the module or file that it interprets."""
    words = command.split()
    for word in words[1:4] if "python" in words[0] else ():
        if not word.startswith("-"):
            return word.rpartition("/")[2]
    return words[0].rpartition("/")[2]


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        if fields := _stat(int(folder.name)):
            children.setdefault(int(fields[1]), []).append(int(folder.name))
    found, left = [], [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _command(pid: int) -> str:
    try:
        raw = (Path("/proc") / str(pid) / "cmdline").read_bytes()
    except OSError:
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace")


def _name(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state (the third) on."""
    try:
        text = (Path("/proc") / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    # The name before them may hold spaces and brackets.
    return text[text.rindex(")") + 2 :].split()
