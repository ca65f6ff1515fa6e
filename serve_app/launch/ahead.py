"""What the launcher begins before Ray runs: the imports of the first replicas of `fused`."""

import os
from pathlib import Path
from typing import Any, Final

from serve_app.launch.overrides import with_env
from serve_app.launch.several import WITH_MODEL
from serve_app.models.fused import standby

# NVIDIA's driver makes one such device for each GPU.
_GPUS: Final = "nvidia[0-9]*"


def with_standbys(
    config: dict[str, Any], folder: Path, devices: Path = Path("/dev")
) -> dict[str, Any]:
    """Start a standby for each replica of `fused` that a GPU of this machine will hold.

    Not without a GPU: there the imports take a quarter of the time and the memory is scarce.

    Args:
        config: of Serve.
        folder: in which the processes wait.
        devices: where the system shows its devices.

    Returns:
        `config`, with the folder made known to all replicas; unchanged where no standby is of use.
    """
    replicas = sum(_replicas(application) for application in config["applications"])
    count = min(gpus(devices), replicas)
    if not count:
        return config
    for number in range(count):
        standby.start(folder, anchor=os.getpid(), fill=number == 0)
    return with_env(config, {"TTS_STANDBYS": str(folder)})


def gpus(devices: Path = Path("/dev")) -> int:
    """Of this machine."""
    return len(list(devices.glob(_GPUS)))


def _replicas(application: dict[str, Any]) -> int:
    """Replicas of `fused` on GPUs that the application starts with."""
    args = application.get("args", {})
    ours = application.get("import_path") in WITH_MODEL
    if not ours or args.get("placement") != "fused" or args.get("device") == "cpu":
        return 0
    for deployment in application.get("deployments", []):
        if deployment["name"] == "Fused":
            scaling = deployment.get("autoscaling_config") or {}
            fixed = deployment.get("num_replicas")
            return fixed if isinstance(fixed, int) else scaling.get("min_replicas") or 1
    return 1
