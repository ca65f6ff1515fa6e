"""The policy in Serve's controller on raylets that say they have two GPUs: all of what it asks for
finds a card.
"""

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
from typing import Any

import pytest

pytest.importorskip("ray")

from load_tests.servers.child import kill_left, search_path
from load_tests.servers.server import MARK, marked

# Replicas that are always full: the policy asks for whatever nodes hold.
STAGES = """
from ray import serve

BOUNDS = {
    "min_replicas": 1, "max_replicas": 8, "target_ongoing_requests": 2,
    "metrics_interval_s": 1, "upscale_delay_s": 0, "downscale_delay_s": 0,
}


class Full:
    def __init__(self, *beside):
        pass

    def record_autoscaling_stats(self):
        return {"capacity": 2.0, "running": 4.0}

    def __call__(self):
        return None


def stage(name, share, per_node=None, least=1):
    options = {} if per_node is None else {"max_replicas_per_node": per_node}
    return serve.deployment(
        name=name, autoscaling_config={**BOUNDS, "min_replicas": least}, **options,
        ray_actor_options={"num_cpus": 0.1, "num_gpus": share},
    )(type(name, (Full,), {}))


whole = stage("SpeechDecoder", 0.3).bind(
    stage("Talker", 0.5).bind(stage("CodePredictor", 0.2).bind())
)
large = stage("Fused", 0.6, 2).bind()
many = stage("Fused", 0.6, 2, 3).bind()
"""
DEPLOY = """
import sys, ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
environment = {"env_vars": {"RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY": "1"}}
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
serve.start(proxy_location="Disabled", controller_options={"runtime_env": environment})
application = {
    "name": "tts", "route_prefix": "/", "import_path": f"stages:{sys.argv[2]}",
    "autoscaling_policy": {"policy_function": "serve_app.deployments.autoscaling:InProportion"},
}
schema = ServeDeploySchema.model_validate({"applications": [application]})
_get_global_client().deploy_apps(schema)
"""
# Holds a cluster, and prints after each line read: a node more.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
cluster.add_node(num_cpus=1, num_gpus=0, node_ip_address="127.0.0.1", include_dashboard=False)
print("at", cluster.address, flush=True)
for line in sys.stdin:
    cluster.add_node(num_cpus=4, num_gpus=2, node_ip_address="127.0.0.1")
    print("at", cluster.address, flush=True)
cluster.shutdown()
"""
WATCH = """
import json, sys, time, ray
from ray.core.generated.gcs_pb2 import ActorTableData
from serve_app.deployments.ray_serve.applications import ask_serve
ray.init(address=sys.argv[1], namespace="serve", log_to_driver=False)
accessor = ray._private.state.state._connect_and_get_accessor()
while True:
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    details = ray.get(controller.get_serve_instance_details.remote())
    found = details["applications"].get("tts", {}).get("deployments", {})
    cards = {}
    for data in accessor.get_actor_table(None, "ALIVE"):
        actor = ActorTableData.FromString(data)
        for entry in actor.resource_mapping:
            if entry.name == "GPU":
                card = f"{actor.node_id.hex()}:{entry.resource_ids[0].index}"
                cards.setdefault(card, []).append(actor.class_name.split(":")[-1])
    states = {n: [r["state"] == "RUNNING" for r in d["replicas"]] for n, d in found.items()}
    application = ask_serve().get("tts")
    print(json.dumps({
        "lacks": application.lacks if application else None,
        "running": {n: sum(each) for n, each in states.items()},
        "waiting": {n: len(each) - sum(each) for n, each in states.items()},
        "target": {n: d["target_num_replicas"] for n, d in found.items()},
        "cards": sorted(sorted(names) for names in cards.values()),
    }), flush=True)
    time.sleep(0.5)
"""


class Watched:
    """A cluster with stages on it, and what is seen of them."""

    def __init__(self, folder: Path, mark: str, stages: str, nodes: int) -> None:
        self._folder = folder
        (folder / "stages.py").write_text(STAGES, encoding="utf-8")
        environment = {
            **os.environ,
            "PYTHONPATH": f"{folder}:{search_path()}",
            "RAY_TMPDIR": str(folder),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Ray's workers would give way to all else that runs here, and not start in time.
            "RAY_worker_niceness": "0",
            MARK: mark,
        }

        def start(program: str, *more: str) -> "subprocess.Popen[str]":
            return subprocess.Popen(
                [sys.executable, "-c", program, *more],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )

        self._cluster = start(CLUSTER)
        address = self._said()
        for _ in range(nodes):
            self.add_node()
        command = [sys.executable, "-c", DEPLOY, address, stages]
        subprocess.run(command, env=environment, check=True, timeout=300)
        self._watch = start(WATCH, address)
        self.seen: list[dict[str, Any]] = []
        threading.Thread(target=self._read, daemon=True).start()

    def add_node(self) -> None:
        assert self._cluster.stdin is not None
        self._cluster.stdin.write("\n")
        self._cluster.stdin.flush()
        self._said()

    def _said(self) -> str:
        assert self._cluster.stdout is not None
        return next(line.split()[1] for line in self._cluster.stdout if line.startswith("at "))

    def _read(self) -> None:
        assert self._watch.stdout is not None
        for line in self._watch.stdout:
            if line.startswith("{"):
                self.seen.append(json.loads(line))

    def wait(self, what: Callable[[dict[str, Any]], bool], within_s: float = 300.0) -> None:
        end_s, looked = time.monotonic() + within_s, len(self.seen)
        while not any(what(seen) for seen in self.seen[looked:]):
            assert time.monotonic() < end_s, self.seen[-1:]
            time.sleep(0.2)

    def logged(self, what: str) -> list[str]:
        """Lines of the log of Serve's controller."""
        logs = self._folder.glob("ray/session_*/logs/serve/controller_*.log")
        lines = [line for log in set(map(Path.resolve, logs)) for line in log.open()]
        return [line for line in lines if what in line]

    def stays(self, sets: int, seconds: float = 12.0) -> None:
        """So many run, no more are asked for, and none waits."""
        looked = len(self.seen)
        time.sleep(seconds)
        for seen in self.seen[looked:]:
            assert set(seen["target"].values()) == set(seen["running"].values()) == {sets}, seen
            assert not any(seen["waiting"].values()), seen


@pytest.fixture
def cluster() -> Iterator[Callable[[str, int], Watched]]:
    mark = uuid.uuid4().hex
    # Short: sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="tts-r-", dir="/tmp") as folder:
        try:
            yield lambda stages, nodes: Watched(Path(folder), mark, stages, nodes)
        finally:
            kill_left(lambda: marked(mark))


def runs(sets: int) -> Callable[[dict[str, Any]], bool]:
    return lambda seen: bool(seen["running"]) and set(seen["running"].values()) == {sets}


def test_stages_that_fill_a_card_grow_set_by_set_and_each_is_on_one(
    cluster: Callable[[str, int], Watched],
) -> None:
    """Two at once might part: two predictors and a talker on a card, two decoders on the other, and
    no room for the second talker.
    """
    watched = cluster("whole", 1)
    watched.wait(runs(2))
    watched.stays(2)
    assert watched.seen[-1]["cards"] == [["CodePredictor", "SpeechDecoder", "Talker"]] * 2
    assert all(count <= 2 for seen in watched.seen for count in seen["target"].values())


def test_what_is_left_of_two_cards_is_not_taken_for_a_third_and_the_next_node_is_used(
    cluster: Callable[[str, int], Watched],
) -> None:
    watched = cluster("large", 1)
    watched.wait(runs(2))
    watched.stays(2)
    assert max(seen["target"].get("Fused", 0) for seen in watched.seen) == 2
    watched.add_node()
    watched.wait(runs(4))
    watched.stays(4)
    assert watched.seen[-1]["cards"] == [["Fused"]] * 4


def test_what_there_is_to_be_at_least_and_no_card_holds_is_said_until_a_node_comes(
    cluster: Callable[[str, int], Watched],
) -> None:
    """Nothing is taken away and asked for again meanwhile."""
    watched = cluster("many", 1)
    why = "each takes 0.6 of a GPU, and none of the 2 GPUs has more than 0.4 left"
    lacks = f"Fused has no place for 1 of 3 replicas: {why}"
    watched.wait(lambda seen: seen["lacks"] == lacks)
    looked = len(watched.seen)
    time.sleep(25)  # longer than a lost node is waited for
    for seen in watched.seen[looked:]:
        assert (seen["running"], seen["waiting"]) == ({"Fused": 2}, {"Fused": 1})
        assert (seen["target"], seen["lacks"]) == ({"Fused": 3}, lacks)
    assert len(watched.logged(f"Fused of 'tts' has no place for 1 of 3 replicas: {why}")) == 1
    watched.add_node()
    watched.wait(lambda seen: seen["running"] == {"Fused": 4} and seen["lacks"] is None)
