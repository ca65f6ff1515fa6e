"""A server started for a measurement: its processes, its logs, its GPU memory, and its end.

Everything is started by `python -m` in this interpreter, so a PYTHONPATH is enough, and every
process of it is ended, also after Ctrl-C.
"""

import http.client
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from load_tests.reports import circumstances, files
from load_tests.servers.child import (
    REPOSITORY,
    interrupt,
    kill_left,
    say,
    search_path,
    start_server,
)
from load_tests.servers.nodes import ON_LOOPBACK, Nodes, Room
from load_tests.servers.processes import ServerProcess, processes

# In the environment of everything that a server starts: how its processes are found again, when
# their parents are gone and they call themselves something else.
MARK: Final = "TTS_BENCH_RUN"
STOP_S: Final = 20.0
_LOG_LINES: Final = 40
# What the controller of Serve logs of an application or deployment that does not start.
_GIVEN_UP: Final = ("are UNHEALTHY", "DEPLOY_FAILED", "failed with exception:")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that was started, perhaps not ready yet."""

    process: subprocess.Popen[bytes]
    url: str
    folder: Path
    started_s: float
    mark: str
    nodes: Nodes | None = None

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def processes(self) -> list[ServerProcess]:
        """The living ones of it that are of a known kind; Linux only."""
        return list(processes(marked(self.mark)))

    def gcs_address(self) -> str:
        """Of its Ray cluster: what its raylet was told.

        Raises:
            RuntimeError: it has none.
        """
        for process in self.processes():
            if process.kind == "raylet":
                command = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode(errors="replace")
                found = re.search(r"--gcs-address=([^\0\s]+)", command)
                if found:
                    return found[1]
        raise RuntimeError("the server has no raylet")

    def wait_until_ready(self, timeout_s: float) -> float:
        """Return the seconds from start to ready.

        Raises:
            ServerFailed: the server ended, or is not ready in time.
        """
        told = ""
        while True:
            reason = not_ready(f"{self.url}/ready")
            elapsed_s = time.monotonic() - self.started_s
            if reason is None:
                return elapsed_s
            if reason != told:
                say(f"{elapsed_s:6.1f} s, not ready: {reason}")
                told = reason
            if self.process.poll() is not None:
                raise ServerFailed(f"the server ended with {self.process.returncode}")
            if self._has_given_up():
                raise ServerFailed(f"the application does not start, seen after {elapsed_s:.0f} s")
            if elapsed_s > timeout_s:
                raise ServerFailed(f"not ready after {timeout_s:.0f} s")
            time.sleep(0.2)

    def _has_given_up(self) -> bool:
        """Whether Serve has found that it fails: on a lent machine, waiting on costs time."""
        return any(
            word in text_of(path)
            for path in self.logs()
            if path.name.startswith("controller_")
            for word in _GIVEN_UP
        )

    def logs(self) -> Iterator[Path]:
        """Its own log, then those of the replicas, the controller and the workers."""
        yield self.log
        session = self.folder / "ray" / "session_latest" / "logs"
        yield from sorted(session.glob("serve/*.log"))
        # A log may go while this looks: Ray removes those of workers that ended.
        yield from sorted(path for path in session.glob("worker-*") if _size(path))


def text_of(path: Path) -> str:
    """Ray moves logs away while somebody looks."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class ServerFailed(Exception):
    """The server did not come up."""


def not_ready(url: str) -> str | None:
    """What `/ready` gives as the reason; None when it is ready."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return None
    except urllib.error.HTTPError as error:
        return error.read(300).decode(errors="replace").strip() or f"status {error.code}"
    except (OSError, http.client.HTTPException):
        return "no answer"


@contextmanager
def serving(
    config: Mapping[str, Any],
    checkpoint: Path | None,
    port: int,
    env: Mapping[str, str],
    nodes: Sequence[Room] = (),
) -> Generator[Server, None, None]:
    """Run `python -m serve_app` in a session of its own; nothing of it is left afterwards.

    `nodes` are those of a cluster to run it on, the head first; by default it has one of its own.
    """
    # Ray puts sockets below it, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="ttsb-", dir="/tmp"))
    mark = uuid.uuid4().hex
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": search_path(),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "HOST": "127.0.0.1",
        "PORT": str(port),
        MARK: mark,
        **env,
    }
    for name in ("RAY_ADDRESS", "TTS_MODEL", "TTS_REVISION"):
        environment.pop(name, None)
    if checkpoint is not None:
        environment["TTS_MODEL"] = str(checkpoint.resolve())
    command = [sys.executable, "-m", "serve_app", str(file)]
    try:
        held = None
        if nodes:
            environment.update(ON_LOOPBACK)
            held = Nodes.start(nodes[0], nodes[1:], folder, environment)
            environment["RAY_ADDRESS"] = held.address
        started_s = time.monotonic()
        process = start_server(command, folder / "server.log", environment, REPOSITORY)
        try:
            yield Server(process, f"http://127.0.0.1:{port}", folder, started_s, mark, held)
        finally:
            interrupt(process, STOP_S)
    finally:
        # Ray's daemons leave the process group and outlive their parents, and `ray stop` would end
        # clusters of others too.
        kill_left(lambda: marked(mark))
        shutil.rmtree(folder, ignore_errors=True)


def marked(mark: str) -> list[int]:
    """Processes, other than zombies, whose environment carries `mark`; Linux only."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or of another user
            continue
    return found


def show(server: Server) -> None:
    """Print the end of the server's log, and of each other log that speaks of an error."""
    for path in server.logs():
        lines = text_of(path).splitlines()
        if path != server.log:
            errors = [n for n, line in enumerate(lines) if "Error" in line or "ERROR" in line]
            if not errors:
                continue
            # Around the first one: what follows is mostly its consequence.
            lines = lines[max(0, errors[0] - 10) : errors[0] + 5]
        say("\n".join([f"--- {path.name}", *(line[:400] for line in lines[-_LOG_LINES:])]))


def keep(server: Server, target: Path) -> None:
    parts = [f"--- {path.name}\n{text_of(path)}" for path in server.logs()]
    files.write_text(target, "\n".join(parts))


def cache_environment(folder: Path) -> dict[str, str]:
    """Where compilers on the way to a ready server shall keep what they have compiled."""
    names = {
        "TRITON_CACHE_DIR": "triton",
        "VLLM_CACHE_ROOT": "vllm",
        "TORCHINDUCTOR_CACHE_DIR": "inductor",
        "CUDA_CACHE_PATH": "cuda",
    }
    return {name: str(folder.resolve() / place) for name, place in names.items()}


class MemoryWatch:
    """Samples the memory in use on each GPU, from a thread, and keeps the most."""

    def __init__(self, period_s: float = 1.0) -> None:
        self._period_s = period_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_mib: list[int] = []

    def __enter__(self) -> "MemoryWatch":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while used := circumstances.gpu_memory_used_mib():
            before = self.peak_mib or used
            self.peak_mib = [max(pair) for pair in zip(before, used, strict=True)]
            if self._ended.wait(self._period_s):
                return
