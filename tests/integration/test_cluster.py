"""A start beside what a cluster that is dead has left: nobody waits for it."""

import os
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


def test_a_cluster_of_its_own_is_started_beside_the_word_of_a_dead_one() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        dead = f"127.0.0.1:{probe.getsockname()[1]}"
        # Bound, and nobody listens. Sockets lie below the folder: its path has to be short.
        with tempfile.TemporaryDirectory(prefix="tts-dead-", dir="/tmp") as folder:
            (Path(folder) / "ray").mkdir()
            (Path(folder) / "ray" / "ray_current_cluster").write_text(dead)
            env = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM],
                env={**env, "RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"},
                capture_output=True,
                text=True,
                timeout=300,
            )
    assert done.returncode == 0, done.stderr[-2000:]
    found = done.stdout.partition("cluster at ")[2].split()
    assert found[0].startswith("127.0.0.1:")
    assert found[0] != dead
