"""A config file that has changed, applied to the server that runs: on SIGHUP, or `kill -HUP`.

What stays as it is goes on: streams of applications that the file still has are not touched.
"""

import logging
import signal
from collections.abc import Callable
from typing import Any, Final

# What Serve reads when it starts, and never again.
_ONLY_AT_START: Final = ("http_options", "grpc_options", "controller_options", "proxy_location")

logger = logging.getLogger(__name__)


def on_hangup(read: Callable[[], dict[str, Any]], running: dict[str, Any]) -> None:
    """From now on, have SIGHUP apply what `read` returns.

    Args:
        read: the configuration as it is now; raises ValueError where it has faults.
        running: the one that Serve was started with.
    """

    def apply_now(number: int, frame: object) -> None:
        del number, frame
        try:
            print(apply(read(), running), flush=True)
        except Exception as error:
            print(f"nothing is changed: {error}", flush=True)

    signal.signal(signal.SIGHUP, apply_now)


def apply(config: dict[str, Any], running: dict[str, Any]) -> str:
    """Give Serve the applications of `config`; returns what to tell the operator.

    Raises:
        RuntimeError: Serve has not started yet.
    """
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        raise RuntimeError("the server has not started yet")
    fixed = {key: running[key] for key in _ONLY_AT_START if key in running}
    late = [key for key in _ONLY_AT_START if config.get(key) != running.get(key)]
    config = {key: value for key, value in config.items() if key not in _ONLY_AT_START}
    client.deploy_apps(ServeDeploySchema.model_validate({**config, **fixed}))
    names = ", ".join(application["name"] for application in config["applications"])
    told = f"applied; applications: {names}"
    return f"{told}; {', '.join(late)} count from the next start on" if late else told
