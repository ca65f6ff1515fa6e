"""Ports of this machine that the launcher chooses now and others listen to seconds later."""

import contextlib
import errno
import socket
import sys
from dataclasses import dataclass
from typing import Final, Self

_CONNECT_S: Final = 3.0
_FOUND_BY_RAY: Final = ("auto", "local")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why nobody can listen somewhere; `in_use`: another port of the address may do."""

    says: str
    in_use: bool = False

    def __str__(self) -> str:
        return self.says


def unreachable(address: str) -> str | None:
    """Why no Ray cluster answers at an address; None where one may."""
    if address in _FOUND_BY_RAY:
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        return str(error)
    except ValueError:
        return "not of the form HOST:PORT"
    return None


class Ports:
    """A context: claimed ports are this launcher's until it is left.

    A claimed port is bound and not listened to. Who shares ports (SO_REUSEPORT), as HAProxy and
    Serve's proxy do, listens to it; another launcher finds it in use, also in the seconds before
    anybody listens.

    Args:
        claims: False where others than this user's processes listen, on nodes of a cluster: ports
            are looked at only.
    """

    def __init__(self, claims: bool = True) -> None:
        # Elsewhere a socket cannot be made to share its port once it is bound.
        self._claims = claims and sys.platform == "linux"
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def claim(self, host: str, port: int) -> bool:
        """Whether the port is free, and with that this launcher's."""
        return self.refusal(host, port) is None

    def refusal(self, host: str, port: int) -> Obstacle | None:
        """Claim a port; why that cannot be, or None."""
        try:
            self._hold(host, port)
        except OSError as error:
            return _reason(error, host, port)
        return None

    def preferred(self, port: int) -> int:
        """`port` if it is free, else another one."""
        return port if self.claim("0.0.0.0", port) else self.any()

    def any(self) -> int:
        return self._hold("0.0.0.0", 0)

    def _hold(self, host: str, port: int) -> int:
        bound = _bound(host, port)
        port = int(bound.getsockname()[1])
        if self._claims:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._held.enter_context(bound)
        else:
            bound.close()
        return port


def is_free(host: str, port: int) -> bool:
    return obstacle(host, port) is None


def obstacle(host: str, port: int) -> Obstacle | None:
    """Why nobody can listen there now, or None."""
    try:
        _bound(host, port).close()
    except OSError as error:
        return _reason(error, host, port)
    return None


def _reason(error: OSError, host: str, port: int) -> Obstacle:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return Obstacle(f"this machine has no address {host}")
    if error.errno == errno.EADDRINUSE:
        return Obstacle(f"{host}:{port} is in use", in_use=True)
    return Obstacle(f"{host}:{port}: {error.strerror}")


def _bound(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # What is left of connections of a server that has ended does not matter.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
