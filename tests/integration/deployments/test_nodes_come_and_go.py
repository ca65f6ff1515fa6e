"""The policy in Serve's controller on several raylets: it asks for what nodes hold, no more."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("ray")

from load_tests.servers.child import kill_left, search_path
from load_tests.servers.nodes import ON_LOOPBACK, Nodes, Room
from load_tests.servers.server import MARK, marked

# Room for one replica.
NODE = Room(2, None, {"tts-role": "stages"})
# A stage that is always full: it gets whatever there may be.
STAGE = """
from ray import serve


@serve.deployment(
    ray_actor_options={"num_cpus": 1.2, "label_selector": {"tts-role": "stages"}},
    autoscaling_config={
        "min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 2,
        "metrics_interval_s": 1, "upscale_delay_s": 0, "downscale_delay_s": 0,
    },
)
class Fused:
    def record_autoscaling_stats(self):
        return {"capacity": 2.0, "running": 4.0}

    def __call__(self):
        return None


app = Fused.bind()
"""
DEPLOY = """
import sys, ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
serve.start(proxy_location="Disabled")
policy = "serve_app.deployments.autoscaling:InProportion"
application = {
    "name": "tts", "route_prefix": "/", "import_path": "stage:app",
    "autoscaling_policy": {"policy_function": policy},
}
schema = ServeDeploySchema.model_validate({"applications": [application]})
_get_global_client().deploy_apps(schema)
"""


class Watched:
    """A cluster with the stage on it, and how many replicas run and are asked for."""

    def __init__(self, folder: Path, mark: str) -> None:
        (folder / "stage.py").write_text(STAGE, encoding="utf-8")
        environment = {
            **os.environ,
            **ON_LOOPBACK,
            "PYTHONPATH": f"{folder}:{search_path()}",
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            MARK: mark,
        }
        self.nodes = Nodes.start(Room(1), [NODE], folder, environment)
        command = [sys.executable, "-c", DEPLOY, self.nodes.address]
        subprocess.run(command, env=environment, check=True, timeout=300)
        self._watch = subprocess.Popen(
            [sys.executable, "-m", "load_tests.servers.steering", self.nodes.address],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seen: list[tuple[int, int]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._watch.stdout is not None
        for line in self._watch.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                self.seen.append((said["running"]["Fused"], said["target"]["Fused"]))

    def wait(self, what: Callable[[int, int], bool], within_s: float = 200.0) -> None:
        end_s, looked = time.monotonic() + within_s, len(self.seen)
        while not any(what(*counts) for counts in self.seen[looked:]):
            assert time.monotonic() < end_s, self.seen[-1:]
            time.sleep(0.2)

    def most_asked_for(self, seconds: float) -> int:
        """Of the replicas that are there or come, in the next seconds."""
        looked = len(self.seen)
        time.sleep(seconds)
        return max(asked for _, asked in self.seen[looked:])


@pytest.fixture
def cluster() -> Iterator[Watched]:
    mark = uuid.uuid4().hex
    # Short: sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="tts-r-", dir="/tmp") as folder:
        try:
            yield Watched(Path(folder), mark)
        finally:
            kill_left(lambda: marked(mark))


def test_a_node_that_joins_is_used_and_of_one_that_leaves_nothing_is_waited_for(
    cluster: Watched,
) -> None:
    cluster.wait(lambda running, asked: running == 1)
    assert cluster.most_asked_for(8) == 1
    second = cluster.nodes.add(NODE)
    cluster.wait(lambda running, asked: running == 2)
    assert max(asked for _, asked in cluster.seen) == 2
    # Serve begins a replacement before the policy gives a node up, whether drained or lost.
    cluster.nodes.drain(second, 600)
    cluster.wait(lambda running, asked: running == asked == 1)
    cluster.nodes.lose(second)
    assert cluster.most_asked_for(8) == 1
    looked, third = len(cluster.seen), cluster.nodes.add(NODE)
    cluster.wait(lambda running, asked: running == 2)
    assert max(asked for _, asked in cluster.seen[looked:]) == 2
    cluster.nodes.lose(third)
    cluster.wait(lambda running, asked: running == asked == 1)
    assert cluster.most_asked_for(8) == 1
