"""What the launcher begins before Ray runs: the imports of the first replicas of `fused`."""

import os
from pathlib import Path
from typing import Any, Final

from serve_app.config import Environment
from serve_app.launch.overrides import with_env
from serve_app.launch.several import WITH_MODEL
from serve_app.models.fused import standby

# NVIDIA's driver makes one such device for each GPU.
_GPUS: Final = "nvidia[0-9]*"


def with_standbys(
    config: dict[str, Any], folder: Path, *, own_cluster: bool, devices: Path = Path("/dev")
) -> dict[str, Any]:
    """Start a standby for each replica of `fused` that a GPU of this machine will hold, or for the
    first one that runs without.

    On CPUs the standby is only the process that the replica would have started itself, with the
    imports done on the core that Ray's start leaves idle; memory is scarce there, and none comes
    after it.

    Args:
        config: of Serve.
        folder: in which the processes wait.
        own_cluster: whether the replicas will be on this machine even if it has no GPU.
        devices: where the system shows its devices.

    Returns:
        `config`, with the folder made known to all replicas; unchanged where no standby is of use.
    """
    num_gpus = gpus(devices)
    on_gpus = on_cpus = 0
    for application in config["applications"]:
        if num_gpus and application.get("args", {}).get("device") != "cpu":
            on_gpus += _replicas(application)
        else:
            on_cpus += _replicas(application)
    count = min(num_gpus, on_gpus)
    for number in range(count):
        standby.start(folder, anchor=os.getpid(), fill=number == 0)
    # One that has been begun for GPUs may be taken by whichever replica comes first.
    if not count and on_cpus and own_cluster:
        count = 1
        standby.start(folder, anchor=os.getpid(), on_cpu=True)
    return with_env(config, {"TTS_STANDBYS": str(folder)}) if count else config


def gpus(devices: Path = Path("/dev")) -> int:
    """Of this machine, those that Ray will see."""
    there = len(list(devices.glob(_GPUS)))
    visible = Environment.read().visible_gpus
    return there if visible is None else min(there, visible)


def _replicas(application: dict[str, Any]) -> int:
    """Replicas of `fused` that the application starts with."""
    args = application.get("args", {})
    ours = application.get("import_path") in WITH_MODEL
    if not ours or args.get("placement") != "fused":
        return 0
    for deployment in application.get("deployments", []):
        if deployment["name"] == "Fused":
            scaling = deployment.get("autoscaling_config") or {}
            fixed = deployment.get("num_replicas")
            return fixed if isinstance(fixed, int) else scaling.get("min_replicas") or 1
    return 1
