"""What Serve takes for the ingress of an application that has none."""

from typing import Any, Final

from ray import serve
from ray.serve.handle import DeploymentHandle

# No process: nobody calls it, and the stages are called by the ingresses of other applications.
OPTIONS: Final[dict[str, Any]] = {
    "autoscaling_config": {
        "min_replicas": 0,
        "initial_replicas": 0,
        "max_replicas": 1,
        "target_ongoing_requests": 1,
    },
    "ray_actor_options": {"num_cpus": 0.001, "num_gpus": 0},
}


@serve.deployment
class Front:
    """Stands at the top of the stages of one model.

    Serve opens a port of its own on each replica of the deployment at the top, and lets it have no
    router but HAProxy. Neither is for a stage.
    """

    def __init__(self, speech: DeploymentHandle) -> None:
        del speech
