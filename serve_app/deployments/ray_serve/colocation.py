"""Talker, code predictor and speech decoder of `split` on one GPU, by what Serve has.

Serve places each replica by itself. What it can be told is how many of a deployment a node may
hold. Where a node is one GPU, the shares fill it and all stages have equal numbers, no other
packing is left than one of each on every GPU (decision 0018).

On nodes of several GPUs that number keeps Serve, which sees what all of them have left together,
from sending a replica where no single one has its share: it would wait there for ever.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from serve_app.config import AppConfig
from serve_app.scaling.room import sets_grown

_STAGES: Final = ("SpeechDecoder", "Talker", "CodePredictor", "Fused")
_EPSILON: Final = 1e-6

logger = logging.getLogger("ray.serve")


def gpus_of_nodes(nodes: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each living node that has any; `nodes` as from `ray.nodes()`."""
    counts = [node["Resources"].get("GPU", 0.0) for node in nodes if node["Alive"]]
    return [count for count in counts if count]


def sets_per_node(
    config: AppConfig, devices: Mapping[str, str], gpus: Sequence[float]
) -> int | None:
    """How many replicas of each stage a node may hold, so that each GPU gets whole sets, or at
    least none is sent to a node whose GPUs are all too full for it.

    None where nothing need be said: on CPUs, where what is left fits none, or where it cannot be
    had.

    Args:
        config: resolved.
        devices: of the stages' deployments.
        gpus: of each node that has any.

    Raises:
        ValueError: `same_gpu` is "required" and cannot be had.
    """
    if set(devices.values()) != {"cuda"}:
        return None
    stages = (config.talker, config.code_predictor, config.speech_decoder)
    total = sum(stage.num_gpus for stage in stages)
    shares = [stage.num_gpus for stage in stages]
    if config.placement == "fused":
        return _per_node([total], gpus)
    if not sets_grown(sum(gpus), shares)[0] and total > 0 and gpus:
        logger.warning(
            "the %g GPUs of the cluster hold no set of stages: their shares are %s, and each is of"
            " one GPU; replicas wait for more",
            sum(gpus),
            ", ".join(f"{share:g}" for share in shares),
        )
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
    return _per_node(shares, gpus)


def _per_node(shares: Sequence[float], gpus: Sequence[float]) -> int | None:
    """Sets that the largest node holds, if what its GPUs have left then would fit one more stage
    only as a sum.
    """
    held, left = sets_grown(max(gpus, default=0.0), shares)
    misleads = any(max(left) < share <= sum(left) for share in shares if share)
    return held if held and misleads else None


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
