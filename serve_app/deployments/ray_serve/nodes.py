"""What the nodes of the cluster have, and which of Serve's replicas are on them.

Asked by a thread of Serve's controller, whose event loop must not wait for an answer.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import ray
from ray._raylet import (
    GcsClient,  # pyright: ignore[reportAttributeAccessIssue]
    node_labels_match_selector,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.core.generated.autoscaler_pb2 import (
    GetClusterStatusReply,  # pyright: ignore[reportAttributeAccessIssue]
    NodeStatus,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.core.generated.gcs_pb2 import (
    ActorTableData,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from serve_app.scaling.room import Place, sets_held
from serve_app.scaling.waiting import Left, lack

_MAX_AGE_S: Final = 2.0
_TIMEOUT_S: Final = 10.0
# What an autoscaler has called impossible is not asked for again for so long.
_REFUSED_S: Final = 300.0
_STOPPING: Final = "STOPPING"
_REPLICA: Final = "ServeReplica:"
_GPU: Final = "GPU"
_EPSILON: Final = 1e-6
# Until then a replica without a node is one that has just been asked for.
_PATIENCE_S: Final = 10.0
# Its place is not counted on: the node is on its way out.
_ALIVE: Final = (NodeStatus.RUNNING, NodeStatus.IDLE)

Resources: TypeAlias = Mapping[str, float]
Key: TypeAlias = tuple[tuple[str, float], ...]

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, slots=True)
class Node:
    """What it has.

    Attributes:
        cards: what each GPU has left by the actors that are there and do not stop.
    """

    total: Resources
    used: Resources
    labels: Mapping[str, str]
    cards: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Deployment:
    """Of Serve: what a replica takes, which nodes may have one, and how many each.

    Attributes:
        running, stopping: replicas by node.
        coming: replicas that have no node yet, or whose node is not known yet.
        waited_s: how long each of these has been asked for, as far as that is known.
    """

    resources: Resources
    selector: Mapping[str, str]
    per_node: int | None
    running: Mapping[str, int]
    stopping: Mapping[str, int]
    coming: int
    waited_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """The cluster at one moment.

    Attributes:
        nodes: those that live and are not drained.
        deployments: by application and name.
        grows: whether an autoscaler adds nodes for what finds none.
        refused: resources of requests for which it says that it cannot.
        wanted: how many requests for the same resources nodes have put off. Those of processes that
            are on their way have their place, though Serve does not know of it yet.
    """

    nodes: Mapping[str, Node]
    deployments: Mapping[tuple[str, str], Deployment]
    grows: bool = False
    refused: tuple[Resources, ...] = ()
    wanted: Mapping[Key, int] = field(default_factory=dict)


def look_at(
    status: GetClusterStatusReply,
    details: Mapping[str, Any],
    actors: Iterable[ActorTableData] = (),
    now_s: float | None = None,
) -> Look:
    """What GCS and Serve's controller say.

    Args:
        status: of the cluster.
        details: of Serve's instance.
        actors: those that live.
        now_s: of the clock; None: as it is.
    """
    now_s = time.time() if now_s is None else now_s
    nodes: dict[str, Node] = {}
    taken = _taken_of_cards(actors, details)
    has_types = False
    for state in status.cluster_resource_state.node_states:
        has_types = has_types or bool(state.ray_node_type_name)
        if state.status in _ALIVE:
            total, free = dict(state.total_resources), dict(state.available_resources)
            used = {name: amount - free.get(name, 0.0) for name, amount in total.items()}
            node = state.node_id.hex()
            cards = [1.0] * int(total.get(_GPU, 0.0))
            for card, amount in taken.get(node, {}).items():
                if card < len(cards):
                    cards[card] = max(0.0, cards[card] - amount)
            nodes[node] = Node(total, used, dict(state.labels), tuple(cards))
    deployments = {
        (application, name): _deployment(found, now_s)
        for application, there in details.get("applications", {}).items()
        for name, found in (there.get("deployments") or {}).items()
    }
    scaler = status.autoscaling_state
    # A cluster started by hand may have one as well, which only reports: its nodes have no types.
    return Look(
        nodes,
        deployments,
        grows=has_types and status.HasField("autoscaling_state"),
        refused=tuple(dict(r.resources_bundle) for r in scaler.infeasible_resource_requests),
        wanted=_wanted(status),
    )


def _wanted(status: GetClusterStatusReply) -> dict[Key, int]:
    found: dict[Key, int] = {}
    for pending in status.cluster_resource_state.pending_resource_requests:
        key = _key(dict(pending.request.resources_bundle))
        found[key] = found.get(key, 0) + pending.count
    return found


def _taken_of_cards(
    actors: Iterable[ActorTableData], details: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By node and card, what actors have. Of Serve's, those that it says run: the place of one that
    stops will be free, and one of which it does not know yet has still to be placed.
    """
    running = {
        replica.get("actor_id")
        for application in details.get("applications", {}).values()
        for deployment in (application.get("deployments") or {}).values()
        for replica in deployment.get("replicas", ())
        if replica["state"] != _STOPPING
    }
    taken: dict[str, dict[int, float]] = {}
    for actor in actors:
        if actor.class_name.startswith(_REPLICA) and actor.actor_id.hex() not in running:
            continue
        cards = taken.setdefault(actor.node_id.hex(), {})
        for entry in actor.resource_mapping:
            if entry.name == _GPU:
                for part in entry.resource_ids:
                    cards[part.index] = cards.get(part.index, 0.0) + part.quantity
    return taken


def _deployment(found: Mapping[str, Any], now_s: float) -> Deployment:
    config = found.get("deployment_config") or {}
    options = config.get("ray_actor_options") or {}
    running: dict[str, int] = {}
    stopping: dict[str, int] = {}
    coming = [replica for replica in found.get("replicas", ()) if _has_no_node(replica)]
    for replica in found.get("replicas", ()):
        node = replica.get("node_id")
        if node is not None:
            counts = stopping if replica["state"] == _STOPPING else running
            counts[node] = counts.get(node, 0) + 1
    asked = {
        "CPU": options.get("num_cpus") or 0.0,
        "GPU": options.get("num_gpus") or 0.0,
        "memory": options.get("memory") or 0.0,
        **(options.get("resources") or {}),
    }
    return Deployment(
        resources={name: float(amount) for name, amount in asked.items() if amount},
        selector=options.get("label_selector") or {},
        per_node=config.get("max_replicas_per_node"),
        running=running,
        stopping=stopping,
        coming=len(coming),
        waited_s=tuple(now_s - begun for one in coming if (begun := one.get("start_time_s"))),
    )


def _has_no_node(replica: Mapping[str, Any]) -> bool:
    return replica.get("node_id") is None and replica["state"] != _STOPPING


def waiting(look: Look, application: str) -> dict[str, str]:
    """Why replicas of an application have had no node for a while, by deployment, in one line."""
    found = {}
    for (owner, name), deployment in look.deployments.items():
        late = sum(waited_s >= _PATIENCE_S for waited_s in deployment.waited_s)
        late = min(late, look.wanted.get(_key(deployment.resources), 0))
        if owner != application or not late:
            continue
        why = lack(_place(look, deployment), _left(look))
        if why is None:
            why = "a node has room, but Ray has sent it to another"
        elif look.grows:
            why += "; an autoscaler adds a node, if it can"
        count = sum(deployment.running.values()) + deployment.coming
        found[name] = f"no place for {late} of {count} replicas: {why}"
    return found


def _left(look: Look) -> dict[str, Left]:
    left = {}
    for node, found in look.nodes.items():
        free = {name: amount - found.used.get(name, 0.0) for name, amount in found.total.items()}
        gpus = free.get(_GPU, 0.0)
        cards = _cards(found.cards, gpus) if len(found.cards) > 1 else [gpus]
        left[node] = Left(free, cards if found.total.get(_GPU) else [])
    return left


@dataclass(slots=True)
class Nodes:
    """The last look, renewed while somebody asks.

    What others than Serve take of a node is seen only while each of Serve's replicas has its node,
    by two looks: one that starts has its share before anybody knows where.

    Args:
        ask: blocks, and raises what it likes.
    """

    ask: Callable[[], Look]
    max_age_s: float = _MAX_AGE_S
    _look: Look | None = None
    _others: Mapping[str, Resources] = field(default_factory=dict)
    _before: Mapping[str, Resources] | None = None
    _refused_s: dict[Key, float] = field(default_factory=dict)
    _asked_s: float = float("-inf")
    _thread: threading.Thread | None = None
    _counted: dict[Any, dict[str, int]] = field(default_factory=dict)
    _counted_of: Look | None = None

    def holds(
        self, application: str, stages: Mapping[str, int], apart: Mapping[str, int]
    ) -> dict[str, int]:
        """Replicas that nodes have room for, those that run included, by deployment; without those
        of which it is not known, or for which an autoscaler adds nodes.

        Args:
            application: of Serve.
            stages: deployments of which there are whole sets, with the most to be told of each.
            apart: the same of the others; of those that run, one more comes in an update.
        """
        self.renew()
        look = self._look
        if look is None:
            return {}
        if look is not self._counted_of:
            self._counted, self._counted_of = {}, look
        asked = (application, tuple(stages.items()), tuple(apart.items()))
        if asked not in self._counted:
            groups = [tuple(stages), *((name,) for name in apart)]
            most = {**stages, **apart}
            self._counted[asked] = {
                name: count
                for group in groups
                if (count := self._held(look, application, group, apart, most)) is not None
                for name in group
            }
        return dict(self._counted[asked])

    def _held(
        self,
        look: Look,
        application: str,
        group: Sequence[str],
        apart: Iterable[str],
        most: Mapping[str, int],
    ) -> int | None:
        """Sets of a group of deployments."""
        names = [(application, name) for name in group]
        if not names or not all(name in look.deployments for name in names):
            return None
        asked = [_key(look.deployments[name].resources) for name in names]
        now_s = time.monotonic()
        if look.grows and not any(
            now_s - self._refused_s.get(key, float("-inf")) < _REFUSED_S for key in asked
        ):
            return None
        free = {
            node: {
                name: amount - self._others.get(node, {}).get(name, 0.0)
                for name, amount in found.total.items()
            }
            for node, found in look.nodes.items()
        }
        for name, deployment in look.deployments.items():
            if name not in names:
                _subtract(free, deployment.running, deployment.resources)
                if name[0] == application and name[1] in apart:
                    successor = dict.fromkeys([*deployment.running][:1], 1)
                    _subtract(free, successor, deployment.resources)
        places = [_place(look, look.deployments[name]) for name in names]
        cards = {
            node: _cards(found.cards, free[node].get(_GPU, 0.0) - _gpus_there(places, node))
            for node, found in look.nodes.items()
            if len(found.cards) > 1
        }
        busy = {node for one in look.deployments.values() for node in one.running}
        return sets_held(free, places, max(most[name] for name in group), cards, busy)

    def waiting(self, application: str) -> dict[str, str]:
        """As `waiting`, by the last look; of no application before that."""
        return {} if self._look is None else waiting(self._look, application)

    def renew(self) -> None:
        """Look again where the last look is old and none is under way."""
        now_s = time.monotonic()
        is_asking = self._thread is not None and self._thread.is_alive()
        if not is_asking and now_s - self._asked_s >= self.max_age_s:
            self._asked_s = now_s
            self._thread = threading.Thread(target=self.see, name="nodes", daemon=True)
            self._thread.start()

    def see(self) -> None:
        """Look now; blocks."""
        try:
            look = self.ask()
        except Exception as error:  # of any kind: GCS is away, or Serve is on its way in or out
            logger.debug("the cluster does not say what it has: %s", error)
            return
        if not any(found.coming for found in look.deployments.values()):
            now = _taken_by_others(look)
            before = now if self._before is None else self._before
            self._others = {
                node: {name: min(amount, before.get(node, {}).get(name, 0.0))
                       for name, amount in taken.items()}
                for node, taken in now.items()
            }  # fmt: skip
            self._before = now
        for refused in look.refused:
            self._refused_s[_key(refused)] = time.monotonic()
        self._look = look


def ask_cluster() -> Look:
    """From within Serve's controller, by another thread than that of its event loop."""
    status = _status()
    controller: Any = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    details: Any = ray.get(controller.get_serve_instance_details.remote(), timeout=_TIMEOUT_S)
    return _look(status, details)


def look_with(details: Mapping[str, Any]) -> Look:
    """The same where Serve has just told its `details`."""
    return _look(_status(), details)


def _status() -> GetClusterStatusReply:
    if not ray.is_initialized():
        raise RuntimeError("this process has joined no cluster")
    status = GetClusterStatusReply()
    status.ParseFromString(_gcs().get_cluster_status(timeout_s=_TIMEOUT_S))
    return status


def _gcs() -> GcsClient:
    return GcsClient(address=ray.get_runtime_context().gcs_address)


def _look(status: GetClusterStatusReply, details: Mapping[str, Any]) -> Look:
    several = any(
        state.total_resources.get(_GPU, 0.0) > 1
        for state in status.cluster_resource_state.node_states
    )
    # Which card an actor has matters, and is told, only there.
    return look_at(status, details, asyncio.run(_living(_gcs())) if several else ())


async def _living(client: GcsClient) -> list[ActorTableData]:
    found = await client.async_get_all_actor_info(None, None, "ALIVE", timeout=_TIMEOUT_S)
    return list(found.values())


# For all applications of a controller.
NODES: Final = Nodes(ask_cluster)


def _gpus_there(places: Iterable[Place], node: str) -> float:
    return sum(place.there.get(node, 0) * place.resources.get(_GPU, 0.0) for place in places)


def _cards(known: Sequence[float], left: float) -> list[float]:
    """What each card has left where `left` is what all have: what else is taken, of which nobody
    says where, is taken where it does most harm, from the emptiest.
    """
    cards = list(known)
    more = sum(cards) - left
    while more > _EPSILON and any(cards):
        at = max(range(len(cards)), key=cards.__getitem__)
        part = min(cards[at], more)
        cards[at] -= part
        more -= part
    return cards


def _place(look: Look, deployment: Deployment) -> Place:
    may = (
        node
        for node, found in look.nodes.items()
        if node_labels_match_selector(dict(found.labels), dict(deployment.selector))
    )
    there = {node: count for node, count in deployment.running.items() if node in look.nodes}
    return Place(deployment.resources, frozenset(may), there, deployment.per_node)


def _taken_by_others(look: Look) -> dict[str, dict[str, float]]:
    left = {node: dict(found.used) for node, found in look.nodes.items()}
    for deployment in look.deployments.values():
        for counts in (deployment.running, deployment.stopping):
            _subtract(left, counts, deployment.resources)
    return {
        node: {name: max(0.0, amount) for name, amount in taken.items()}
        for node, taken in left.items()
    }


def _subtract(
    left: Mapping[str, dict[str, float]], counts: Mapping[str, int], resources: Resources
) -> None:
    for node, count in counts.items():
        if node in left:
            for name, amount in resources.items():
                left[node][name] = left[node].get(name, 0.0) - amount * count


def _key(resources: Resources) -> Key:
    """What of a request is not Serve's own: that counts its replicas on a node as a resource."""
    return tuple(sorted((n, round(a, 4)) for n, a in resources.items() if "node:" not in n))
