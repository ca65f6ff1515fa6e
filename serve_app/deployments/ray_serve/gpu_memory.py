"""How much memory the GPUs of the cluster have, and settings that fit it."""

import logging
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from serve_app.config import AppConfig

_QUERY: Final = ("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
_TIMEOUT_S: Final = 20.0
# Of a process on each other node, which has to start first.
_ASK_S: Final = 60.0

logger = logging.getLogger("ray.serve")


def here(command: Sequence[str] = _QUERY) -> int | None:
    """Bytes of the smallest GPU of this machine; None where there is none to ask."""
    try:
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    sizes = [int(line) for line in said.stdout.split() if line.isdigit()]
    return min(sizes) << 20 if sizes else None


def of_cluster() -> int | None:
    """Bytes of the smallest GPU of all nodes; None where no node could be asked."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    if len(nodes) <= 1 and (found := here()) is not None:
        return found
    asked = [
        ray.remote(num_cpus=0)(here)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False))
        .remote()
        for node in nodes
    ]
    try:
        sizes = [size for size in ray.get(asked, timeout=_ASK_S) if size is not None]
    except RayError as error:
        logger.warning("not every node says how much memory its GPUs have: %s", error)
        return None
    return min(sizes, default=None)


def suited(
    config: AppConfig, folder: Path, ask: Callable[[], int | None] = of_cluster
) -> AppConfig:
    """`config` with settings that fit the GPUs, where its profile is `auto`; else looked at only.

    Args:
        config: resolved, with stages on GPUs.
        folder: of the checkpoint, or of its description.
        ask: how much memory the smallest GPU has.

    Raises:
        ValueError: nothing fits, or nobody knows how much memory there is.
    """
    from serve_app.models.checkpoint.reading import read_spec
    from serve_app.models.memory import presets
    from serve_app.models.memory.estimate import gib

    stated = config.gpu_memory_gib
    memory = int(stated * 2**30) if stated is not None else ask()
    if memory is None:
        if config.profile == "auto":
            raise ValueError(
                "profile 'auto' goes by the memory of the GPUs, and no node could say how much"
                " there is: state gpu_memory_gib, or another profile"
            )
        return config
    spec = read_spec(folder)
    if config.profile != "auto":
        if warning := presets.check(config, spec, memory):
            logger.warning("%s", warning)
        return config
    chosen = presets.fitted(config, spec, memory)
    logger.info(
        "for GPUs with %s GiB: %d streams per replica, requests of up to %d positions",
        gib(memory),
        chosen.talker.max_num_seqs,
        chosen.talker.max_model_len,
    )
    return chosen
