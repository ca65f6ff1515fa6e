"""Talker, code predictor and speech decoder of `split` on one GPU, by what Serve has.

Serve places each replica by itself. What it can be told is how many of a deployment a node may
hold. Where a node is one GPU, the shares fill it and all stages have equal numbers, no other
packing is left than one of each on every GPU (decision 0018).
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from serve_app.config import AppConfig

_STAGES: Final = ("SpeechDecoder", "Talker", "CodePredictor")
_EPSILON: Final = 1e-6

logger = logging.getLogger("ray.serve")


def gpus_of_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each living node that has any; `nodes` as from `ray.nodes()`."""
    counts = [node["Resources"].get("GPU", 0.0) for node in nodes if node["Alive"]]
    return [count for count in counts if count]


def sets_per_node(
    config: AppConfig, devices: Mapping[str, str], gpus: Sequence[float]
) -> int | None:
    """How many replicas of each stage a node may hold, so that each GPU gets whole sets.

    None where nothing need be said: stages in one process, or on CPUs, or where it cannot be had.

    Args:
        config: resolved.
        devices: of the stages' deployments.
        gpus: of each node that has any.

    Raises:
        ValueError: `same_gpu` is "required" and cannot be had.
    """
    if config.placement == "fused" or set(devices.values()) != {"cuda"}:
        return None
    stages = (config.talker, config.code_predictor, config.speech_decoder)
    total = sum(stage.num_gpus for stage in stages)
    problem = ""
    if total > 1 + _EPSILON:
        problem = f"their shares add up to {total:g} GPUs"
    elif total <= 0:
        problem = "they reserve no share of a GPU"
    elif any(count > 1 for count in gpus):
        problem = (
            f"a Ray node has {max(gpus):g} GPUs, and Serve does not say which of them a replica"
            " gets: start a Ray node for each GPU"
        )
    if not problem:
        return int(1 / total + _EPSILON)
    said = (
        "talker, code predictor and speech decoder cannot be held to one GPU:"
        f" {problem}, or take placement 'fused'"
    )
    if config.same_gpu == "required":
        raise ValueError(said)
    logger.warning("%s; the talker reaches a predictor on another GPU through a socket", said)
    return None


def with_sets(
    limits: Mapping[str, dict[str, Any]], per_node: int | None
) -> dict[str, dict[str, Any]]:
    """Deployment options in which each stage has at most so many replicas on a node."""
    if per_node is None:
        return dict(limits)
    return {
        name: {**options, "max_replicas_per_node": per_node} if name in _STAGES else options
        for name, options in limits.items()
    }
