"""A server over several nodes: what its configuration makes room for."""

from collections.abc import Callable
from typing import Any

import pytest

from load_tests.chaos.settings import driver_of
from load_tests.nodes.__main__ import parse
from load_tests.nodes.blows import BLOWS
from load_tests.nodes.settings import completed, rooms, spread_config
from load_tests.reports import circumstances
from load_tests.scaling import __main__ as scaling
from serve_app.app import make_plan
from serve_app.config import AppConfig
from serve_app.serve_config import find_problems


@pytest.mark.parametrize("placement", ["split", "fused"])
def test_a_node_holds_one_replica_of_each_stage_and_no_ingress_besides(placement: str) -> None:
    args = completed(parse(["--placement", placement, "--nodes", "3"]))
    head, *others = rooms(args)
    assert len(others) == 3
    config = spread_config(args, 1, 3, {"down_after_s": 20.0})
    assert not list(find_problems(config))
    assert config["proxy_location"] == "HeadOnly"
    per_node = {
        deployment["name"]: deployment.get("max_replicas_per_node")
        for deployment in config["applications"][0]["deployments"]
    }
    # In an update the next ingress is there before the last one goes, both on the head.
    assert per_node.pop("Ingress") is None
    assert set(per_node.values()) == {1}
    assert 2 * AppConfig().ingress.num_cpus <= head.cpus
    app = AppConfig.model_validate(config["applications"][0]["args"])
    plan = make_plan(app, {"CPU": float(sum(room.cpus for room in rooms(args)))})
    cpus = {name: options["num_cpus"] for name, options in plan.actor_options.items()}
    ingress = cpus.pop("Ingress")
    node = sum(cpus.values())
    for room in others:
        assert node <= room.cpus < node + ingress
        assert 2 * node > room.cpus
    assert ingress <= head.cpus
    for name, options in plan.actor_options.items():
        home = head if name == "Ingress" else others[0]
        assert options["label_selector"] == home.labels


def test_with_gpus_there_is_a_node_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circumstances, "gpus", lambda: [{"name": "H100"}] * 2)
    args = completed(parse([]))
    head, *others = rooms(args)
    assert head.gpu is None
    assert [room.gpu for room in others] == [0, 1]


def test_stages_may_have_as_many_replicas_as_there_are_nodes() -> None:
    args = parse(["--placement", "split", "--nodes", "2"])
    (application,) = spread_config(args, 1, 2)["applications"]
    bounds = {
        deployment["name"]: (
            deployment["autoscaling_config"]["min_replicas"],
            deployment["autoscaling_config"]["max_replicas"],
        )
        for deployment in application["deployments"]
    }
    assert bounds == {
        "Ingress": (1, 1),
        "SpeechDecoder": (1, 2),
        "Talker": (1, 2),
        "CodePredictor": (1, 2),
    }
    # What ships, where nothing else is asked for.
    assert application["autoscaling_policy"]["policy_kwargs"] == {}


def test_by_default_everything_that_can_be_lost_is() -> None:
    assert set(parse([]).lose) == set(BLOWS)


@pytest.mark.parametrize("parsed", [parse, scaling.parse])
def test_the_options_are_all_that_the_driver_asks_for(parsed: Callable[..., Any]) -> None:
    args = completed(parsed(["--below-db", "40", "--streams", "3"]))
    driver = driver_of(args, "http://localhost:1")
    assert (driver.references.below_db, driver.streams) == (40.0, 3)
