"""Serve's gRPC between replicas, on the address of its node only.

Each replica opens a port for the calls of others, takes whatever comes for a pickle, and binds it
to all interfaces, for which Serve has no setting. Others reach it by the address of its node.
"""

import logging
from typing import Final

import ray
from ray.serve._private import replica

_EVERYWHERE: Final = "[::]:"

logger = logging.getLogger(__name__)


def narrow() -> None:
    """Have Serve bind that port to the node's address; to be called by a replica's constructor.

    Serve opens it once the constructor has returned. Where a release of Serve does it in another
    way, it stays as it is, and the log says so.
    """
    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:
        logger.warning("Serve's gRPC of this replica listens to all interfaces")
        return
    host = ray.util.get_node_ip_address()
    host = f"[{host}]" if ":" in host else host

    def bind_here(server: object, address: str) -> int:
        if address.startswith(_EVERYWHERE):
            address = f"{host}:{address.removeprefix(_EVERYWHERE)}"
        return bind(server, address)

    replica.add_port_to_grpc_server = bind_here  # pyright: ignore[reportPrivateImportUsage]
