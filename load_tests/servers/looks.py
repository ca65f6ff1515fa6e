"""What the replicas of a running server have and do, asked of each of them, past the router.

For a process that has joined the server's Ray cluster. What replicas tell Ray's agents is seconds
old, and the loads that are measured last for seconds.
"""

import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

APPLICATION: Final = "tts"
# The stages of a replica itself, of those that its method `stats` tells of.
_WORKING: Final = {
    "Fused": ("talker", "speech_decoder"),
    "Talker": ("talker",),
    "SpeechDecoder": ("speech_decoder",),
}
_PERIOD_S: Final = 0.1
# Every so many looks: which replicas there are, and what they have done so far.
_LISTED: Final = 10
_WORKED: Final = 2
_TIMEOUT_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at `at_s` (`time.perf_counter`), by deployment and replica.

    requests: that each replica is working on.
    work: counters of its stages by their names; empty in most looks.
    pids: of the replicas' processes.
    """

    at_s: float
    requests: Mapping[str, Mapping[str, int]]
    work: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
    pids: Mapping[str, int]


def look(tell: Callable[[dict[str, Any]], None], ended: threading.Event) -> None:
    """Tell the fields of a `Look` again and again until `ended`; who does not answer is left out.

    What goes wrong ends nothing: the next look may do.
    """
    replicas: dict[str, _Replica] = {}
    number = 0
    while not ended.wait(_PERIOD_S):
        try:
            if number % _LISTED == 0:
                replicas = _running(replicas)
            tell(_seen(replicas.values(), with_work=number % _WORKED == 0))
        except Exception as error:
            tell({"broken": f"{type(error).__name__}: {error}"})
        number += 1


@dataclass(frozen=True, slots=True)
class _Replica:
    deployment: str
    name: str
    pid: int
    actor: Any


def _running(known: Mapping[str, _Replica]) -> dict[str, _Replica]:
    import ray
    from ray.serve._private.common import DeploymentID, ReplicaID
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    details: Any = ray.get(client._controller.get_serve_instance_details.remote())
    application = details["applications"].get(APPLICATION, {})
    found: dict[str, _Replica] = {}
    for deployment, said in application.get("deployments", {}).items():
        for replica in said["replicas"]:
            name = replica["replica_id"]
            if replica["state"] != "RUNNING":
                continue
            if name not in known:
                full = ReplicaID(name, DeploymentID(deployment, APPLICATION)).to_full_id_str()
                actor = ray.get_actor(full, namespace="serve")
                found[name] = _Replica(deployment, name, replica["pid"] or 0, actor)
            else:
                found[name] = known[name]
    return found


def _seen(replicas: Iterable[_Replica], *, with_work: bool) -> dict[str, Any]:
    import ray

    at_s = time.perf_counter()
    asked: dict[Any, tuple[_Replica, str]] = {}
    for replica in replicas:
        asked[replica.actor.get_num_ongoing_requests.remote()] = (replica, "requests")
        if with_work and replica.deployment in _WORKING:
            asked[replica.actor.handle_request.remote(_call_of_stats())] = (replica, "work")
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_TIMEOUT_S)
    found: dict[str, Any] = {"at_s": at_s, "requests": {}, "work": {}, "pids": {}}
    for reference in answered:
        replica, what = asked[reference]
        try:
            said: Any = ray.get(reference)
        except Exception:  # it has ended, or has just begun
            continue
        if what == "work":
            own = _WORKING[replica.deployment]
            said = {stage: _without_buckets(said[stage]) for stage in own if stage in said}
        found[what].setdefault(replica.deployment, {})[replica.name] = said
        found["pids"][replica.name] = replica.pid
    return found


def _call_of_stats() -> bytes:
    """What Serve sends with a call of the method `stats`."""
    from ray.serve._private.common import RequestMetadata

    name = uuid.uuid4().hex
    return pickle.dumps(RequestMetadata(name, name, call_method="stats", app_name=APPLICATION))


def _without_buckets(counters: Any) -> dict[str, float]:
    return {name: value for name, value in counters.items() if "<" not in name}
