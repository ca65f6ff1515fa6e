"""A cluster of its own: started beside what a dead one has left, and ended by a signal."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
from serve_app.launch import cluster
cluster.prepare_environment()
cluster.connect()
import ray
print("cluster at", ray.get_runtime_context().gcs_address, ray.cluster_resources()["CPU"])
"""

WAITING = (
    PROGRAM
    + """
import time
try:
    print("waiting", flush=True)
    time.sleep(100)
except KeyboardInterrupt:
    print("ended", flush=True)
"""
)


def environment() -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**env, "RAY_USAGE_STATS_ENABLED": "0"}


def test_a_cluster_of_its_own_is_started_beside_the_word_of_a_dead_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        # Bound, and nobody listens. Sockets lie below the folder: its path has to be short.
        with tempfile.TemporaryDirectory(prefix="tts-dead-", dir="/tmp") as folder:
            (Path(folder) / "ray").mkdir()
            (Path(folder) / "ray" / "ray_current_cluster").write_text(dead)
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM],
                env={**environment(), "RAY_TMPDIR": folder},
                capture_output=True,
                text=True,
                timeout=300,
            )
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout.partition("cluster at ")[2].split()
    assert found[0].startswith("127.0.0.1:")
    assert found[0] != dead


def test_a_signal_to_terminate_ends_the_launcher_as_ctrl_c_does() -> None:
    """What stops services and containers; Ray alone would abort the process."""
    with (
        tempfile.TemporaryDirectory(prefix="tts-term-", dir="/tmp") as folder,
        subprocess.Popen(
            [sys.executable, "-c", WAITING],
            env={**environment(), "RAY_TMPDIR": folder},
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            assert any(line.startswith("waiting") for line in process.stdout)
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (said, process.returncode) == ("ended\n", 0)
