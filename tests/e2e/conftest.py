"""A real server: the launcher, `serve run`, HAProxy and all replicas, in processes of their own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml

pytest.importorskip("ray")

import psutil

from load_tests.servers.child import kill_left
from load_tests.servers.processes import DEPLOYMENTS, processes
from load_tests.servers.server import MARK, marked
from tests.waiting import wait_until

REPOSITORY = Path(__file__).parents[2]
CONFIGS = {"split": "configs/serve.yaml", "fused": "configs/serve.fused.yaml"}
DRAIN_S = {"split": 3.0, "fused": 30.0}
SPEECH = {"split": "SpeechDecoder", "fused": "Fused"}
START_TIMEOUT_S = 420.0
STOP_TIMEOUT_S = 60.0
# Serve starts another HAProxy after three looks at one that has gone, by default half a minute.
QUICK_LOOKS = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "5"}
# From the last stream to the end: enough for two busy cores, and far below `drain_s`.
OVER_S = 15.0


@dataclass(frozen=True)
class Server:
    """A running server; `stats` asks the stages themselves, past HTTP."""

    placement: str
    url: str
    process: psutil.Process
    observer: subprocess.Popen[str]
    mark: str
    folder: Path

    def stats(self) -> dict[str, dict[str, float]]:
        assert self.observer.stdin is not None
        assert self.observer.stdout is not None
        self.observer.stdin.write("\n")
        self.observer.stdin.flush()
        return json.loads(self.observer.stdout.readline())

    def num_streams(self) -> float:
        """How many requests any stage still works on."""
        stats = self.stats()
        talker, decoder = stats["talker"], stats["speech_decoder"]
        return max(talker["running"], talker["waiting"], talker["streams"], decoder["streams"])

    def processes(self) -> list[psutil.Process]:
        """All that it has started, also those that are nobody's children."""
        found: list[psutil.Process] = []
        for pid in marked(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(psutil.Process(pid))
        return found

    def replicas(self) -> dict[str, list[psutil.Process]]:
        """The processes of the replicas, by the names of their deployments."""
        children = {child.pid: child for child in self.process.children(recursive=True)}
        names = {kind: name for name, kind in DEPLOYMENTS.items()}
        found: dict[str, list[psutil.Process]] = {}
        for process in processes(children):
            if process.kind in names:
                found.setdefault(names[process.kind], []).append(children[process.pid])
        return found


@pytest.fixture(scope="module", params=["split", "fused"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    placement: str = request.param
    with tempfile.TemporaryDirectory(prefix="tts-e2e-", dir="/tmp") as folder:
        config = yaml.safe_load((REPOSITORY / CONFIGS[placement]).read_text())
        ingress = {"drain_s": DRAIN_S[placement]}
        config["applications"][0]["args"]["ingress"] = ingress
        path = Path(folder) / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        yield from run_server(placement, Path(folder), request.config, path, more=QUICK_LOOKS)


def run_server(
    placement: str,
    folder: Path,
    config: pytest.Config,
    serve_config: Path | None = None,
    application: str = "tts",
    more: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server with `more` in its environment, whose stages in `application` are the ones that are
    observed.
    """
    port = free_port()
    log = folder / "server.log"
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        MARK: mark,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        # Sockets lie below it, and the path of a socket must be short.
        "RAY_TMPDIR": str(folder),
        # For the observer, as the launcher sets it for itself: Ray is on the loopback interface.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        # As on a machine whose other programs have taken nearly all: nothing of ours is killed.
        "RAY_memory_usage_threshold": "0.01",
        **(more or {}),
    }
    for name in ("TTS_MODEL", "TTS_REVISION", "RAY_ADDRESS"):
        environment.pop(name, None)
    # What a cluster that died has left: a start must not wait for it.
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{free_port()}")
    started = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve_app", str(serve_config or CONFIGS[placement])],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    root = psutil.Process(process.pid)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process, log)
        ready_s = time.monotonic() - started
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"\n{placement}: ready {ready_s:.1f} s after the start")
        with observe(placement, folder, environment, application) as observer:
            server = Server(placement, url, root, observer, mark, folder)
            server.stats()  # so that the first measured call finds the way
            yield server
            observer.kill()
    finally:
        stop(process, mark)


def wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    # Each `httpx.get` reads all certificates that there are, for 25 ms of a core.
    with httpx.Client(timeout=5, headers={"connection": "close"}) as client:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said = log.read_text()[-4000:]
                pytest.fail(f"the server ended with {process.returncode}:\n{said}")
            try:
                if client.get(f"{url}/ready").status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.25)
    replica_logs = sorted(log.parent.glob("ray/session_*/logs/serve/replica_*.log"))
    tails = "\n".join(f"--- {path.name}\n{path.read_text()[-2000:]}" for path in replica_logs)
    pytest.fail(f"not ready after {START_TIMEOUT_S:.0f} s:\n{log.read_text()[-4000:]}\n{tails}")


def observe(
    placement: str, folder: Path, environment: dict[str, str], application: str
) -> subprocess.Popen[str]:
    (port_file,) = folder.glob("ray/session_latest/gcs_server_port_*")
    address = f"127.0.0.1:{port_file.read_text().strip()}"
    observer = Path(__file__).with_name("observer.py")
    return subprocess.Popen(
        [sys.executable, str(observer), address, SPEECH[placement], application],
        # Not one of the server's own.
        env={name: value for name, value in environment.items() if name != MARK},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def stop(process: subprocess.Popen[bytes], mark: str) -> None:
    """End the server as Ctrl-C does, then whatever of it is left; touches only what it started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    kill_left(lambda: marked(mark))


def assert_over(server: Server) -> None:
    """It ends with success, and so does all that it started."""
    assert server.process.wait(OVER_S) == 0
    wait_until(lambda: not server.processes(), 5)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
