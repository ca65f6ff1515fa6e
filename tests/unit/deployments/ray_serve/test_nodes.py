"""What the nodes hold, by what GCS and Serve's controller say."""

from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus
from ray.core.generated.gcs_pb2 import ActorTableData

from serve_app.app import make_plan
from serve_app.config import AppConfig
from serve_app.deployments.ray_serve.nodes import Look, Nodes, look_at, waiting

STAGES = {"Fused": 8}
APART = {"Ingress": 8}


def status(
    *nodes: Mapping[str, Any],
    grows: bool = False,
    refused: Mapping[str, float] | None = None,
    wanted: Mapping[str, float] | None = None,
) -> GetClusterStatusReply:
    """`nodes` have a name, what they have in all and what is free of it; of `wanted` there are two
    requests that wait.
    """
    reply = GetClusterStatusReply()
    if wanted:
        pending = reply.cluster_resource_state.pending_resource_requests.add()
        pending.count = 2
        for resource, amount in wanted.items():
            pending.request.resources_bundle[resource] = amount
    for node in nodes:
        state = reply.cluster_resource_state.node_states.add()
        state.node_id = node["name"].encode()
        state.status = node.get("status", NodeStatus.RUNNING)
        state.ray_node_type_name = node.get("type", "")
        state.labels.update(node.get("labels", {}))
        for resource, amount in node["total"].items():
            state.total_resources[resource] = amount
            state.available_resources[resource] = node.get("free", node["total"])[resource]
    if grows:
        reply.autoscaling_state.autoscaler_state_version = 1
    if refused:
        request = reply.autoscaling_state.infeasible_resource_requests.add()
        for resource, amount in refused.items():
            request.resources_bundle[resource] = amount
    return reply


def replica(node: str | None, state: str = "RUNNING", actor: str = "") -> dict[str, Any]:
    """As Serve tells of it; of one that has no node yet, without any."""
    known = {"node_id": node.encode().hex(), "actor_id": actor.encode().hex()} if node else {}
    return {"state": state, "start_time_s": 1000.0, **known}


def actor(name: str, node: str, card: int, share: float, *, of_serve: bool = True) -> Any:
    """As GCS tells of it."""
    found = ActorTableData(actor_id=name.encode(), node_id=node.encode())
    found.class_name = "ServeReplica:tts:Fused" if of_serve else "Somebody"
    has = found.resource_mapping.add()
    has.name = "GPU"
    part = has.resource_ids.add()
    part.index, part.quantity = card, share
    return found


def deployment(
    *replicas: Mapping[str, Any], cpus: float, gpus: float = 0.0, **options: Any
) -> dict[str, Any]:
    config = {
        "ray_actor_options": {
            "num_cpus": cpus,
            "num_gpus": gpus,
            **({"label_selector": options["labels"]} if "labels" in options else {}),
        },
        "max_replicas_per_node": options.get("per_node"),
    }
    return {"deployment_config": config, "replicas": list(replicas)}


def details(**deployments: Any) -> dict[str, Any]:
    return {"applications": {"tts": {"deployments": deployments}}}


def held(*looks: Look) -> dict[str, int]:
    """After these looks, one after the other."""
    left = list(looks)
    nodes = Nodes(lambda: left.pop(0), max_age_s=float("inf"))
    for _ in looks:
        nodes.see()
    return nodes.holds("tts", STAGES, APART)


def gpu(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "total": {"CPU": 8.0, "GPU": 1.0}, **more}


def test_nobody_knows_before_the_first_look() -> None:
    def fail() -> Look:
        raise ConnectionError

    nodes = Nodes(fail)
    nodes.see()
    assert nodes.holds("tts", STAGES, APART) == {}


@pytest.mark.parametrize(
    ("placement", "machine", "expected"),
    [
        ("fused", {"CPU": 16.0, "GPU": 1.0}, 1),
        ("fused", {"CPU": 64.0, "GPU": 4.0}, 4),
        ("split", {"CPU": 64.0, "GPU": 2.0}, 2),
        ("split", {"CPU": 64.0, "GPU": 64.0}, 8),
        ("split", {"CPU": 2.0}, 1),
        ("split", {"CPU": 8.0}, 4),
        # Cores run out before GPUs do.
        ("fused", {"CPU": 4.0, "GPU": 8.0}, 2),
    ],
)
def test_a_machine_holds_so_many_sets_beside_an_ingress_and_its_successor(
    placement: str, machine: dict[str, float], expected: int
) -> None:
    plan = make_plan(AppConfig.model_validate({"placement": placement}), machine)
    there = {
        name: deployment(replica("a"), cpus=options["num_cpus"], gpus=options["num_gpus"])
        for name, options in plan.actor_options.items()
    }
    free = {
        resource: amount
        - sum(options[f"num_{resource.lower()}s"] for options in plan.actor_options.values())
        for resource, amount in machine.items()
    }
    look = look_at(status({"name": "a", "total": machine, "free": free}), details(**there))
    nodes = Nodes(lambda: look, max_age_s=float("inf"))
    nodes.see()
    stages = {name: 8 for name in there if name != "Ingress"}
    found = nodes.holds("tts", stages, APART)
    assert {found[name] for name in stages} == {expected}


def test_a_node_that_joins_holds_more_and_one_that_is_drained_or_dead_nothing() -> None:
    stages = details(Fused=deployment(replica("a"), cpus=6, gpus=1))
    assert held(look_at(status(gpu("a")), stages))["Fused"] == 1
    assert held(look_at(status(gpu("a"), gpu("b")), stages))["Fused"] == 2
    for gone in (NodeStatus.DRAINING, NodeStatus.DEAD):
        assert held(look_at(status(gpu("a"), gpu("b", status=gone)), stages))["Fused"] == 1


def test_a_replica_without_a_node_is_none_that_is_held() -> None:
    waiting = details(Fused=deployment(replica("a"), replica(None, "STARTING"), cpus=6, gpus=1))
    assert held(look_at(status(gpu("a")), waiting))["Fused"] == 1


def test_the_place_of_one_that_stops_will_be_free() -> None:
    """Or an update of all would be one to fewer."""
    nodes = status(gpu("a"), gpu("b", free={"CPU": 2.0, "GPU": 0.0}))
    leaving = details(Fused=deployment(replica("a"), replica("b", "STOPPING"), cpus=6, gpus=1))
    look = look_at(nodes, leaving)
    assert held(look, look)["Fused"] == 2


def test_labels_and_numbers_per_node_are_those_of_the_deployment() -> None:
    nodes = status(gpu("a", labels={"role": "gpu"}), gpu("b"))
    some = deployment(replica("a"), cpus=1, labels={"role": "gpu"})
    assert held(look_at(nodes, details(Fused=some)))["Fused"] == 8
    one = deployment(replica("a"), cpus=1, labels={"role": "gpu"}, per_node=1)
    assert held(look_at(nodes, details(Fused=one)))["Fused"] == 1


def test_what_other_applications_and_other_programs_have_is_theirs() -> None:
    other = {"deployments": {"Fused": deployment(replica("b"), cpus=6, gpus=1)}}
    ours = details(Fused=deployment(replica("a"), cpus=6, gpus=1))
    both = {"applications": {**ours["applications"], "other": other}}
    used = {"CPU": 2.0, "GPU": 0.0}
    assert held(look_at(status(gpu("a", free=used), gpu("b", free=used)), both))["Fused"] == 1
    # A program of somebody's, which Serve knows nothing of; seen by two looks.
    nodes = status(gpu("a", free=used), gpu("b", free=used))
    free = look_at(status(gpu("a", free=used), gpu("b")), ours)
    taken = look_at(nodes, ours)
    assert held(free, taken)["Fused"] == 2
    assert held(free, taken, taken)["Fused"] == 1
    # What one of Serve's has that starts is not somebody's.
    starting = deployment(replica("a"), replica(None, "STARTING"), cpus=6, gpus=1)
    look = look_at(nodes, details(Fused=starting))
    assert held(look, look)["Fused"] == 2


def test_where_nodes_come_when_they_are_asked_for_nobody_knows_how_many() -> None:
    ours = details(
        Fused=deployment(replica("a"), cpus=6, gpus=1), Ingress=deployment(replica("c"), cpus=1)
    )
    nodes = (gpu("a", type="gpu"), {"name": "c", "total": {"CPU": 4.0}, "type": "ingress"})
    assert held(look_at(status(*nodes, grows=True), ours)) == {}
    # One that is there to report only, as `ray start` has it.
    by_hand = (gpu("a"), {"name": "c", "total": {"CPU": 4.0}})
    assert held(look_at(status(*by_hand, grows=True), ours))["Fused"] == 1
    # The autoscaler says that it can have no more of these.
    asked = {"CPU": 6.0, "GPU": 1.0, "node:__internal_implicit_resource_tts:Fused": 1.0}
    refused = look_at(status(*nodes, grows=True, refused=asked), ours)
    assert held(refused) == {"Fused": 1}
    assert held(refused, look_at(status(*nodes, grows=True), ours)) == {"Fused": 1}


def pair(**more: Any) -> dict[str, Any]:
    """A node of two GPUs."""
    return {"name": "a", "total": {"CPU": 64.0, "GPU": 2.0}, **more}


def test_a_share_is_counted_on_the_card_that_has_it_left() -> None:
    def one(card: int, share: float, per_replica: float) -> int:
        """Replicas of Fused, of which one runs with this card."""
        stage = deployment(replica("a", actor="x"), cpus=1, gpus=per_replica)
        free = {"CPU": 63.0, "GPU": 2.0 - share}
        look = look_at(
            status(pair(free=free)), details(Fused=stage), [actor("x", "a", card, share)]
        )
        return held(look, look)["Fused"]

    # The sums say three, and the second node's one would wait for ever.
    assert one(0, 0.6, 0.6) == one(1, 0.6, 0.6) == 2
    assert one(0, 0.5, 0.5) == 4
    assert one(1, 1.0, 1.0) == 2


def test_stages_that_parted_leave_less_room_than_their_sum() -> None:
    """A talker and its decoder on two cards: neither has 0.6 left."""
    talker = deployment(replica("a", actor="t"), cpus=1, gpus=0.6)
    decoder = deployment(replica("a", actor="d"), cpus=1, gpus=0.4)
    nodes = status(pair(free={"CPU": 62.0, "GPU": 1.0}))
    stages = details(Talker=talker, SpeechDecoder=decoder)

    def sets(*actors: Any) -> int:
        look = look_at(nodes, stages, actors)
        known = Nodes(lambda: look, max_age_s=float("inf"))
        known.see()
        return known.holds("tts", {"Talker": 8, "SpeechDecoder": 8}, {})["Talker"]

    assert sets(actor("t", "a", 0, 0.6), actor("d", "a", 0, 0.4)) == 2
    assert sets(actor("t", "a", 0, 0.6), actor("d", "a", 1, 0.4)) == 2
    stages["applications"]["tts"]["deployments"]["SpeechDecoder"] = deployment(
        replica("a", actor="d"), cpus=1, gpus=0.5
    )
    nodes = status(pair(free={"CPU": 62.0, "GPU": 0.9}))
    assert sets(actor("t", "a", 0, 0.6), actor("d", "a", 1, 0.5)) == 1


def test_cards_of_others_of_those_that_stop_and_of_nobody_known() -> None:
    ours = replica("a", actor="x")
    mine, his = actor("x", "a", 0, 0.5), actor("y", "a", 1, 0.6, of_serve=False)
    nodes = status(pair(free={"CPU": 60.0, "GPU": 0.9}))
    alone = details(Fused=deployment(ours, cpus=1, gpus=0.5))
    # 0.4 are left of the second card.
    assert held(*[look_at(nodes, alone, [mine, his])] * 2)["Fused"] == 2
    # A task of 0.6, which no list of actors has, may be on either: it is taken where it costs most.
    assert held(*[look_at(nodes, alone, [mine])] * 2)["Fused"] == 2
    # The card of one that stops will be free, and one of which Serve has no node is to be placed.
    both = details(Fused=deployment(ours, replica("a", "STOPPING", "z"), cpus=1, gpus=0.5))
    new = details(Fused=deployment(ours, replica(None, "STARTING"), cpus=1, gpus=0.5))
    nodes = status(pair(free={"CPU": 62.0, "GPU": 1.0}))
    for known in (both, new):
        look = look_at(nodes, known, [mine, actor("z", "a", 1, 0.5)])
        assert held(look)["Fused"] == 4


def test_what_waits_for_a_card_is_told_with_what_the_cards_have() -> None:
    stage = deployment(
        *(replica("a", actor=name) for name in "xy"), replica(None, "STARTING"), cpus=1, gpus=0.6
    )
    cards = [actor("x", "a", 0, 0.6), actor("y", "a", 1, 0.6)]

    asked = {"CPU": 1.0, "GPU": 0.6, "node:__internal_implicit_resource_tts:Fused": 0.5}

    def told(now_s: float, *more: Any, wanted: Any = asked, **changes: Any) -> dict[str, str]:
        nodes = status(
            pair(free={"CPU": 62.0, "GPU": 0.8}, type="gpu"), *more, wanted=wanted, **changes
        )
        return waiting(look_at(nodes, details(Fused=stage), cards, now_s), "tts")

    why = "each takes 0.6 of a GPU, and none of the 2 GPUs has more than 0.4 left"
    assert told(1020.0) == {"Fused": f"no place for 1 of 3 replicas: {why}"}
    assert told(1005.0) == {}
    # Its process starts slowly, on a card that is no other's any more.
    assert told(1020.0, wanted=None) == {}
    assert told(1020.0, wanted={"CPU": 1.0, "GPU": 0.5}) == {}
    assert told(1020.0, grows=True)["Fused"].endswith("; an autoscaler adds a node, if it can")
    # With a node more one has room; Ray keeps it where it has sent it.
    assert "Ray has sent it to another" in told(1020.0, gpu("b", type="gpu"))["Fused"]


def test_of_a_replica_nobody_waits_for_nothing_is_told() -> None:
    """One that stops, and one of which a new controller does not know when it was asked for."""
    leaving = replica(None, "STOPPING")
    unknown = {"state": "RECOVERING", "start_time_s": 0}
    stage = deployment(replica("a"), leaving, unknown, cpus=6, gpus=1)
    nodes = status(gpu("a", free={"CPU": 2.0, "GPU": 0.0}), wanted={"CPU": 6.0, "GPU": 1.0})
    assert waiting(look_at(nodes, details(Fused=stage), now_s=2000.0), "tts") == {}
