"""A cluster of several raylets on this machine, and what can befall it."""

import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray")

from load_tests.servers.child import kill_left, search_path
from load_tests.servers.nodes import ON_LOOPBACK, Nodes, Room
from load_tests.servers.processes import processes
from load_tests.servers.server import MARK, marked

ALIVE = """
import json, sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
print(json.dumps(sorted(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])))
"""


SEEN = """
import json, os, sys, ray
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)
seen = ray.remote(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
ask = seen.options(num_cpus=0, num_gpus=0.5, label_selector={"tts-role": "stages"})
print(json.dumps(ray.get([ask.remote() for _ in range(2)])))
"""


class Cluster:
    def __init__(self, folder: Path, mark: str) -> None:
        self.environment = {
            **os.environ,
            **ON_LOOPBACK,
            "PYTHONPATH": search_path(),
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            MARK: mark,
        }
        self.mark = mark
        self.nodes = Nodes.start(Room(1), [Room(2)], folder, self.environment)

    def cpus(self) -> list[float]:
        """Of the nodes that live, as a driver of the cluster sees them."""
        return self.said(ALIVE)

    def said(self, program: str) -> list[Any]:
        command = [sys.executable, "-c", program, self.nodes.address]
        said = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=120
        )
        # Ray tells of lost nodes on the same channel.
        (line,) = [line for line in said.stdout.splitlines() if line.startswith("[")]
        return json.loads(line)

    def raylets(self) -> set[int]:
        return {p.pid for p in processes(marked(self.mark)) if p.kind == "raylet"}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    mark = uuid.uuid4().hex
    # Short: sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="tts-n-", dir="/tmp") as folder:
        try:
            yield Cluster(Path(folder), mark)
        finally:
            kill_left(lambda: marked(mark))


def test_nodes_are_lost_and_added_and_the_gcs_remembers_them(cluster: Cluster) -> None:
    nodes = cluster.nodes
    (worker,) = nodes.workers
    assert cluster.raylets() == {nodes.head, worker}
    nodes.lose(worker)
    assert cluster.raylets() == {nodes.head}
    # What Ray is told of a GPU need not be there.
    added = nodes.add(Room(3, 5, {"tts-role": "stages"}))
    assert cluster.said(SEEN) == ["5", "5"]
    assert nodes.workers == [added]
    (gcs,) = [p.pid for p in processes(marked(cluster.mark)) if p.kind == "gcs"]
    nodes.restart_gcs(0.5)
    (again,) = [p.pid for p in processes(marked(cluster.mark)) if p.kind == "gcs"]
    assert again != gcs
    end_s = time.monotonic() + 60
    while (found := cluster.cpus()) != [1.0, 3.0]:
        assert time.monotonic() < end_s, found
    nodes.end()
    assert not cluster.raylets()
