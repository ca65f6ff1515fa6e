"""A Ray cluster of several nodes on this machine, each a raylet of its own, and what befalls them.

A process of its own holds them, since what measures must not import Ray. Run as a module it is that
process: it obeys lines of JSON and answers each with one. Serve's proxies of several nodes on one
machine would want the same ports, so the server's config needs `proxy_location: HeadOnly`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from load_tests.servers.child import REPOSITORY, free_port
from load_tests.servers.processes import descendants

_HOST: Final = "127.0.0.1"
# For all that speaks to the cluster, or Ray takes the machine's outer address for this one.
ON_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# A machine that is gone is noticed after five seconds and not, as Ray has it, after a minute.
_HEALTH: Final = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
}


# As the launcher has it for a cluster of its own: Ray's workers would give way to all else that
# runs here, and not start in time.
_PRIORITY: Final = {"RAY_worker_niceness": "0"}


class NodesFailed(Exception):
    """The cluster did not do what it was told."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a node has: CPUs, as far as Ray knows, a GPU of this machine by its index, if any, and
    labels.
    """

    cpus: int
    gpu: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Nodes:
    """The other side of the process; all calls block.

    Attributes:
        address: of the cluster's GCS.
        head: process id of the head's raylet.
        workers: process ids of the other nodes' raylets.
        rooms: what each node has that there is or was, by its raylet; without the head.
    """

    process: "subprocess.Popen[str]"
    log: Path
    address: str = ""
    head: int = 0
    workers: list[int] = field(default_factory=list)
    rooms: dict[int, Room] = field(default_factory=dict)

    @classmethod
    def start(
        cls, head: Room, rooms: Sequence[Room], folder: Path, environment: Mapping[str, str]
    ) -> Self:
        """Start a head and a node for each of `rooms`; GCS keeps what it knows below `folder`.

        Raises:
            NodesFailed: they do not come up.
        """
        storage = folder / "gcs"
        storage.mkdir()
        log = folder / "nodes.log"
        process = subprocess.Popen(
            [sys.executable, "-m", "load_tests.servers.nodes"],
            cwd=REPOSITORY,
            env={
                **environment,
                **_HEALTH,
                **_PRIORITY,
                "RAY_gcs_storage": "rocksdb",
                "RAY_gcs_storage_path": str(storage),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            start_new_session=True,
        )
        made = cls(process, log)
        said = made._ask({"do": "start", **asdict(head)})
        made.address, made.head = said["address"], said["raylet"]
        for room in rooms:
            made.add(room)
        return made

    def add(self, room: Room) -> int:
        """A node more; the process id of its raylet."""
        raylet = int(self._ask({"do": "add", **asdict(room)})["raylet"])
        self.workers.append(raylet)
        self.rooms[raylet] = room
        return raylet

    def lose(self, raylet: int) -> None:
        """Kill a node and all that runs on it at one moment, as when a machine loses power."""
        for pid in [raylet, *descendants(raylet)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.workers.remove(raylet)
        self._ask({"do": "forget", "raylet": raylet})

    def drain(self, raylet: int, within_s: float) -> None:
        """Tell the cluster that a node will go, as a pod does that is removed; it stays there."""
        self._ask({"do": "drain", "raylet": raylet, "within_s": round(within_s)})

    def restart_gcs(self, down_s: float) -> None:
        """Kill the GCS, and start it again on what it had stored."""
        self._ask({"do": "gcs", "down_s": down_s})

    def end(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ask(self, what: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(what) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise NodesFailed(self._said()) from error
        # Ray itself prints as well.
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise NodesFailed(self._said())

    def _said(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def hold() -> None:
    """Hold the nodes until the input ends."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster()
    nodes: dict[int, Any] = {}

    def added(order: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        gpu = order["gpu"]
        # All that a raylet starts sees the GPU of its node and no other.
        env = {"CUDA_VISIBLE_DEVICES": "" if gpu is None else str(gpu)}
        node = cluster.add_node(
            num_cpus=order["cpus"],
            num_gpus=int(gpu is not None),
            node_ip_address=_HOST,
            env_vars=env,
            labels=order["labels"],
            **more,
        )
        (raylet,) = node.all_processes["raylet"]
        nodes[raylet.process.pid] = node
        return {"raylet": raylet.process.pid}

    for line in sys.stdin:
        order = json.loads(line)
        said: dict[str, Any] = {}
        if order["do"] == "start":
            # Ray takes the usual port of the dashboard even where there is to be none.
            away = {"include_dashboard": False, "dashboard_port": free_port()}
            said = {**added(order, **away), "address": cluster.address}
        elif order["do"] == "add":
            said = added(order)
        elif order["do"] == "drain":
            drain = (sys.executable, "-m", "ray.scripts.scripts", "drain-node")
            why = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "asked for")
            which = ("--address", cluster.address, "--node-id", nodes[order["raylet"]].node_id)
            within = ("--deadline-remaining-seconds", str(order["within_s"]))
            subprocess.run([*drain, *which, *why, *within], check=True, stdout=sys.stderr)
        elif order["do"] == "forget":
            cluster.remove_node(nodes.pop(order["raylet"]), allow_graceful=False)
        else:
            cluster.head_node.kill_gcs_server()
            time.sleep(order["down_s"])
            cluster.head_node.start_gcs_server()
        print(json.dumps(said), flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    hold()
