"""The Ray cluster that the launcher runs the application on: its own, unless told to join one."""

import os
from typing import Final

from serve_app.config import Environment

_NAMESPACE: Final = "serve"
# Ray's name for it comes from the systems where this is the default.
_ON_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# By default Ray's workers, here the stages, give way to whatever else the machine does: behind a
# browser on a laptop, speech would stop.
_NICENESS: Final = ("RAY_worker_niceness", "0")


def prepare_environment() -> None:
    """Have the Ray that this process is going to import keep to the loopback interface, and give
    its workers their share of the processor.

    Not where RAY_ADDRESS names a cluster, whose nodes have to reach each other.
    """
    if Environment.read().ray_address is None:
        os.environ.update(_ON_LOOPBACK)
        os.environ.setdefault(*_NICENESS)


def connect() -> None:
    """Connect this process to the cluster of RAY_ADDRESS, else to a new one on this machine.

    By itself, Ray would look for clusters that other programs have left word of. One of them may
    be dead, and is then waited for for minutes; another may be somebody else's.

    Raises:
        ConnectionError: nothing answers at RAY_ADDRESS.
    """
    import ray

    ray.init(address=Environment.read().ray_address or "local", namespace=_NAMESPACE)
