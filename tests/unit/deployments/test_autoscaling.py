"""The policy as Serve's controller calls it, with contexts as the controller makes them."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("ray")

from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID, ReplicaID, TimeStampedValue
from ray.serve.config import AutoscalingContext, AutoscalingPolicy

from serve_app import serve_config
from serve_app.deployments.autoscaling import InProportion, snapshot_of
from serve_app.deployments.ray_serve.nodes import NODES, Deployment, Look, Node


def context(
    name: str, replicas: int = 1, requests: float = 0.0, app: str = "tts", **report: float
) -> AutoscalingContext:
    identity = DeploymentID(name=name, app_name=app)
    ids = [ReplicaID(f"r{number}", identity) for number in range(replicas)]
    return AutoscalingContext(
        deployment_id=identity,
        deployment_name=name,
        app_name=app,
        current_num_replicas=replicas,
        target_num_replicas=replicas,
        running_replicas=ids,
        total_num_requests=lambda: requests,
        total_queued_requests=0.0,
        aggregated_metrics={},
        raw_metrics={
            key: {i: [TimeStampedValue(1.0, 0.0), TimeStampedValue(2.0, value)] for i in ids}
            for key, value in report.items()
        },
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=1000.0,
        config=None,
    )


def contexts(requests: float, at_s: float) -> dict[DeploymentID, AutoscalingContext]:
    made = [
        context("Ingress", 1, requests),
        context("SpeechDecoder", 1, requests),
        context("Talker", 1, requests, running=requests, waiting=0.0, capacity=64.0),
        context("CodePredictor", 1, 1.0),
    ]
    for one in made:
        one.current_time = at_s
    return {one.deployment_id: one for one in made}


def test_the_last_that_each_running_replica_said_counts() -> None:
    loads = snapshot_of([context("Talker", 2, 5.0, running=3.0)]).stages
    assert loads["Talker"].reports == ({"running": 3.0}, {"running": 3.0})
    assert loads["Talker"].requests == 5.0


def test_serve_can_make_it_of_the_shipped_configuration() -> None:
    for file in ("configs/serve.yaml", "configs/serve.fused.yaml"):
        stated = serve_config.load(file)["applications"][0]["autoscaling_policy"]
        policy = _resolve_policy_callable(AutoscalingPolicy(**stated))
        for second in range(10):
            targets, state = policy(contexts(200.0, 1000.0 + second))  # pyright: ignore[reportCallIssue]
        assert {key.name: count for key, count in targets.items()} == {
            "Ingress": 8,
            "SpeechDecoder": 5,
            "Talker": 5,
            "CodePredictor": 5,
        }
        assert state == {}


def test_a_model_is_scaled_by_what_the_ingress_of_another_application_refuses_of_it() -> None:
    """Its own replicas see only whom they have let in: full ones, and nobody who waits."""
    front, model = InProportion(), InProportion()
    told = {"refused_per_s": 0.0, "refused_per_s/voice": 200.0, "refused_per_s/other": 300.0}
    targets: dict[Any, int | float] = {}
    for second in range(10):
        ingress = context("Ingress", app="front", **told)
        fused = context("Fused", 1, 64.0, "voice", running=64.0, capacity=64.0, service_s=5.0)
        ingress.current_time = fused.current_time = 1000.0 + second
        front({ingress.deployment_id: ingress})
        targets, _ = model({fused.deployment_id: fused})
    # The streams that run, and who comes again each second: 247 at 48 each.
    assert set(targets.values()) == {6}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="ray.serve")
    yield caplog
    logger.removeHandler(caplog.handler)


def said(lines: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [record.getMessage().partition("scaling ") for record in lines.records]
    return [json.loads(text) for _, marker, text in found if marker]


def test_what_a_decision_goes_by_is_in_its_line(lines: pytest.LogCaptureFixture) -> None:
    suffering = {"first_audio_p95_s": 0.75, "slack_p05_s": -0.5, "arrivals_per_s": 2.0}
    policy = InProportion()
    for second, report in enumerate([{}, suffering]):
        talker = {"running": 40.0, "waiting": 9.0, "capacity": 64.0}
        stages = [
            context("SpeechDecoder", 1, 30.0, **report),
            context("Talker", 1, 49.0, **talker, **({"kv_cache_usage": 0.97} if report else {})),
        ]
        for one in stages:
            # The second after more is wanted for long enough, and past the quiet minute.
            one.current_time = 1000.0 + 100 * second
        policy({one.deployment_id: one for one in stages})
    silent, known = said(lines)
    assert {"streams": 49.0, "running": 40.0, "waiting": 9.0}.items() <= silent.items()
    # Where nobody says it, 0 s would read as listeners about to run dry.
    assert not {"first_audio_p95_s", "slack_p05_s", "kv"} & silent.keys()
    assert (known["first_audio_p95_s"], known["slack_p05_s"], known["kv"]) == (0.75, -0.5, 0.97)


def test_what_nobody_has_room_for_is_said_once_in_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = Deployment({"GPU": 0.6}, {}, None, {"n": 1}, {}, coming=1, waited_s=(20.0,))
    node = Node({"GPU": 1.0}, {"GPU": 0.6}, {})
    policy = InProportion()
    for look in ({("tts", "Fused"): stage}, {("tts", "Fused"): stage}, {("other", "Fused"): stage}):
        monkeypatch.setattr(NODES, "_look", Look({"n": node}, look, wanted={(("GPU", 0.6),): 1}))
        fused = context("Fused", 1)
        policy({fused.deployment_id: fused})
    said = "Fused of 'tts' has no place for 1 of 2 replicas: each takes 0.6 of a GPU, and the"
    assert [line for line in capfd.readouterr().err.splitlines() if "no place" in line] == [
        f"{said} only GPU has 0.4 left"
    ]


def test_it_leaves_all_as_it_is_where_it_fails() -> None:
    broken = context("Talker")
    broken.running_replicas = None  # pyright: ignore[reportAttributeAccessIssue]
    assert InProportion()({broken.deployment_id: broken}) == ({}, {})


def test_a_constant_that_does_not_exist_is_found_before_the_start() -> None:
    config = serve_config.load("configs/serve.yaml")
    config["applications"][0]["autoscaling_policy"]["policy_kwargs"] = {"spares": 1}
    assert "spares" in "\n".join(serve_config.find_problems(config))
