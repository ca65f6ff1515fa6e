"""What is left of a server that is signalled as a whole while it starts: nothing."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("ray")

from load_tests.servers.child import kill_left
from load_tests.servers.processes import processes
from load_tests.servers.server import MARK, marked
from serve_app.launch.ports import obstacle
from serve_app.models.checkpoint.embedded import embedded_checkpoint
from tests.e2e.conftest import CONFIGS, REPOSITORY, free_port
from tests.waiting import wait_until

MOMENT_S = 240.0
# Often enough for a moment; each look takes some milliseconds of what starts.
LOOK_S = 0.1
# Ray's workers notice by themselves that their node has gone.
LEFT_S = 30.0


class Starting:
    """A server whose stages cannot start: their weights are gone once the launcher has looked."""

    def __init__(self, folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.port = free_port()
        self.log = folder / "server.log"
        self._weights = folder / "model" / "model.safetensors"
        shutil.copytree(embedded_checkpoint(), folder / "model")
        environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            MARK: self.mark,
            "HOST": "127.0.0.1",
            "PORT": str(self.port),
            "TTS_MODEL": str(folder / "model"),
            # Also the launcher's own folder, to see whether it is removed.
            "TMPDIR": str(folder / "t"),
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
        }
        (folder / "t").mkdir()
        with self.log.open("wb") as output:
            self.launcher = subprocess.Popen(
                [sys.executable, "-m", "serve_app", CONFIGS["fused"]],
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        return marked(self.mark)

    def wait_for(self, kind: str) -> None:
        """Until there is a process of this kind."""
        wait_until(lambda: kind in self._kinds(), MOMENT_S, every_s=LOOK_S, told=self.log)

    def _kinds(self) -> set[str]:
        kinds = {process.kind for process in processes(self.pids())}
        if "gcs" in kinds:
            self._weights.unlink(missing_ok=True)
        return kinds

    def wait_for_failure(self) -> None:
        self.wait_for("fused")
        wait_until(
            lambda: "CheckpointError" in self.log.read_text(),
            MOMENT_S,
            every_s=LOOK_S,
            told=self.log,
        )

    def signal_group(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it ends by itself where stages do not start
            os.killpg(self.launcher.pid, number)


class Left:
    """Says, once asked, what there still is of a server."""

    def __init__(self, server: Starting) -> None:
        self._server = server

    def __str__(self) -> str:
        return f"{commands_of(self._server.pids())}\n{self._server.log.read_text()[-3000:]}"


def commands_of(pids: list[int]) -> list[str]:
    found: list[str] = []
    for pid in pids:
        with suppress(OSError):  # it has ended meanwhile
            command = (Path("/proc") / str(pid) / "cmdline").read_text()
            found.append(f"{pid} {command.replace(chr(0), ' ')}")
    return found


@pytest.fixture
def starting() -> Iterator[Starting]:
    with tempfile.TemporaryDirectory(prefix="tts-e2e-", dir="/tmp") as folder:
        server = Starting(Path(folder))
        try:
            yield server
        finally:
            server.launcher.kill()
            server.launcher.wait()
            kill_left(server.pids)


def after(seconds: float) -> Callable[[Starting], None]:
    return lambda _: time.sleep(seconds)


def once_there(kind: str) -> Callable[[Starting], None]:
    return lambda server: server.wait_for(kind)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param(moment, number, id=f"{name}-{number.name}")
        for name, moment, number in [
            ("at once", after(0.1), signal.SIGTERM),
            ("gcs", once_there("gcs"), signal.SIGTERM),
            ("raylet", once_there("raylet"), signal.SIGINT),
            ("haproxy", once_there("haproxy"), signal.SIGKILL),
            ("failed", Starting.wait_for_failure, signal.SIGTERM),
        ]
    ],
)
def test_a_signal_to_a_whole_server_that_starts_leaves_nothing_of_it(
    starting: Starting,
    moment: Callable[[Starting], None],
    number: int,
) -> None:
    moment(starting)
    told_s = time.monotonic()
    starting.signal_group(number)
    wait_until(lambda: obstacle("127.0.0.1", starting.port) is None, LEFT_S)
    print(f"port free after {time.monotonic() - told_s:.1f} s")
    starting.launcher.wait(LEFT_S)
    print(f"launcher {starting.launcher.returncode} after {time.monotonic() - told_s:.1f} s")
    wait_until(lambda: not starting.pids(), LEFT_S, told=Left(starting))
    # Nobody has come back.
    assert obstacle("127.0.0.1", starting.port) is None


def test_told_to_end_while_ray_starts_the_launcher_says_that_nothing_has_failed(
    starting: Starting,
) -> None:
    """Ray by itself would end it with 1, which to Docker and Kubernetes is a failure."""
    starting.wait_for("gcs")
    starting.launcher.send_signal(signal.SIGTERM)
    status = starting.launcher.wait(LEFT_S)
    assert status == 0, starting.log.read_text()[-3000:]
    wait_until(lambda: not starting.pids(), LEFT_S, told=Left(starting))
