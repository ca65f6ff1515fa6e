"""WebSockets of an ingress that Serve takes out of service.

Behind HAProxy Serve has the replica's HTTP server stop once nobody new can come, and waits for what
it has. Uvicorn lets requests end, but of WebSockets it cuts all at once, whatever is spoken there.
"""

import logging

from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

logger = logging.getLogger(__name__)


def outlast() -> None:
    """Leave it to the application to end them; to be called by a replica's constructor.

    Where a release of uvicorn does it in another way, it stays as it is, and the log says so.
    """
    if hasattr(AutoWebSocketsProtocol, "shutdown"):
        AutoWebSocketsProtocol.shutdown = _stay  # pyright: ignore[reportFunctionMemberAccess, reportOptionalMemberAccess]
    else:
        logger.warning("WebSockets are cut where Serve takes this replica out of service")


def _stay(protocol: object) -> None:
    del protocol
