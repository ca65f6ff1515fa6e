"""When the stages of `split` can be held to one GPU, and what is said where they cannot."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from serve_app.config import AppConfig
from serve_app.deployments.limits import deployment_options
from serve_app.deployments.ray_serve.colocation import gpus_of_nodes, sets_per_node, with_sets

CUDA = {"Talker": "cuda", "CodePredictor": "cuda", "SpeechDecoder": "cuda"}


def config(**changes: Any) -> AppConfig:
    return AppConfig.model_validate({"placement": "split", **changes})


def shares(talker: float, predictor: float, decoder: float) -> dict[str, Any]:
    return {
        "talker": {"num_gpus": talker},
        "code_predictor": {"num_gpus": predictor},
        "speech_decoder": {"num_gpus": decoder},
    }


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    logger = logging.getLogger("ray.serve")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("given", "sets"), [({}, 1), (shares(0.25, 0.1, 0.15), 2), (shares(0.5, 0.25, 0.2), 1)]
)
def test_a_node_of_one_gpu_holds_whole_sets(given: dict[str, Any], sets: int) -> None:
    assert sets_per_node(config(**given), CUDA, [1.0, 1.0]) == sets


def test_the_stages_and_not_the_ingress_are_bound_to_it() -> None:
    limits = with_sets(deployment_options(config(), 100.0, 16), 1)
    assert {name for name, options in limits.items() if "max_replicas_per_node" in options} == {
        *CUDA
    }
    assert "max_replicas_per_node" not in with_sets(limits, None)["Ingress"]


@pytest.mark.parametrize(
    ("given", "gpus", "why"),
    [
        ({}, [1.0, 4.0], "a Ray node has 4 GPUs"),
        (shares(1.0, 0.5, 0.5), [1.0, 1.0], "add up to 2 GPUs"),
        (shares(0.0, 0.0, 0.0), [1.0], "no share"),
    ],
)
def test_what_cannot_be_had_is_refused_where_it_is_required_and_else_said(
    given: dict[str, Any], gpus: list[float], why: str, said: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=why):
        sets_per_node(config(same_gpu="required", **given), CUDA, gpus)
    assert sets_per_node(config(**given), CUDA, gpus) is None
    assert why in said.text


def test_one_process_and_cpus_need_nothing(said: pytest.LogCaptureFixture) -> None:
    fused = config(placement="fused", same_gpu="required")
    assert sets_per_node(fused, {"Fused": "cuda"}, [4.0]) is None
    half = config(placement="fused", **shares(0.25, 0.1, 0.15))
    assert sets_per_node(half, {"Fused": "cuda"}, [4.0]) is None
    assert sets_per_node(config(), dict.fromkeys(CUDA, "cpu"), []) is None
    assert sets_per_node(config(), {**CUDA, "SpeechDecoder": "cpu"}, [4.0]) is None
    assert not said.records


@pytest.mark.parametrize(
    ("given", "gpus", "most"),
    [
        ({}, [2.0], None),  # they fill each GPU
        (shares(0.6, 0.25, 0.15), [2.0, 2.0], None),
        (shares(0.6, 0.2, 0.15), [2.0], None),
        # 0.8 are left of two GPUs, for which Serve would send a third talker.
        (shares(0.6, 0.0, 0.0), [2.0, 1.0], 2),
        (shares(0.6, 0.1, 0.1), [4.0], 4),
        (shares(0.6, 0.4, 1.0), [4.0], None),
        (shares(0.6, 0.3, 1.0), [8.0], 4),
    ],
)
def test_nobody_is_sent_to_a_node_whose_gpus_have_enough_only_in_all(
    given: dict[str, Any], gpus: list[float], most: int | None
) -> None:
    assert sets_per_node(config(**given), CUDA, gpus) == most
    total = sum(stage["num_gpus"] for stage in given.values()) if given else 1.0
    if total <= 1:
        fused = config(placement="fused", **given)
        assert sets_per_node(fused, {"Fused": "cuda"}, gpus) == (most if total < 0.9 else None)


def test_a_set_that_no_gpus_hold_is_told_of(said: pytest.LogCaptureFixture) -> None:
    assert sets_per_node(config(**shares(0.5, 0.4, 0.3)), CUDA, [1.0]) is None
    assert "the 1 GPUs of the cluster hold no set of stages" in said.text
    said.clear()
    assert sets_per_node(config(**shares(0.5, 0.4, 0.3)), CUDA, [1.0, 1.0]) is None
    assert "hold no set" not in said.text


def test_only_living_nodes_with_gpus_count() -> None:
    nodes = [
        {"Alive": True, "Resources": {"GPU": 1.0, "CPU": 8.0}},
        {"Alive": True, "Resources": {"CPU": 8.0}},
        {"Alive": False, "Resources": {"GPU": 8.0}},
    ]
    assert gpus_of_nodes(nodes) == [1.0]
