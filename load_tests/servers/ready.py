"""A server that is ready, for a command that starts one and puts load on it."""

import argparse
import signal
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from load_tests.servers.child import say
from load_tests.servers.nodes import Room
from load_tests.servers.server import Server, ServerFailed, keep, serving, show
from serve_app.launch.ports import is_free


@contextmanager
def ready_server(
    args: argparse.Namespace,
    config: Mapping[str, Any],
    checkpoint: Path | None = None,
    nodes: Sequence[Room] = (),
) -> Generator[tuple[Server, float], None, None]:
    """Start a server as `serving` does; it, and the seconds from its start until it was ready.

    In the end its logs are in `server.log` of the command's folder. SIGTERM ends the command as an
    exception would, so that nothing of the server is left.

    Args:
        args: `port`, `env` (KEY=VALUE each), `ready_timeout` in s, and `out`, the folder.
        config: of the server.
        checkpoint: default: what `config` names.
        nodes: as for `serving`.

    Raises:
        ServerFailed: it did not come up, or was lost; why has been said, with what its logs have.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        if not is_free("127.0.0.1", args.port):
            say(f"port {args.port} is in use; choose another: --port")
            raise ServerFailed(f"port {args.port} is in use")
        env = dict(pair.split("=", 1) for pair in args.env)
        with serving(config, checkpoint, args.port, env, nodes) as server:
            try:
                ready_s = server.wait_until_ready(args.ready_timeout)
                say(f"ready after {ready_s:.1f} s")
                yield server, ready_s
            except ServerFailed as error:
                say(str(error))
                show(server)
                raise
            finally:
                keep(server, args.out / "server.log")
    finally:
        signal.signal(signal.SIGTERM, before)
