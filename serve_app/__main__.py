"""`python -m serve_app [config.yaml]`: `serve run` with a strict check of the config, HOST, PORT
and PROFILE.

What Serve gets is the file as it stands plus these, and ports and socket paths of HAProxy
that are free on this machine: by default two servers on one machine would take each other's.
"""

import os
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final

import yaml

from serve_app import serve_config
from serve_app.launch import overrides

DEFAULT_CONFIG: Final = "configs/serve.yaml"


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print("usage: python -m serve_app [config.yaml]", file=sys.stderr)
        return 2
    try:
        config = serve_config.load(arguments[0] if arguments else DEFAULT_CONFIG)
        config = overrides.with_profile(config, os.environ.get("PROFILE"))
        port = int(os.environ.get("PORT") or 0) or None
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    config = overrides.with_address(config, os.environ.get("HOST") or None, port)
    options = config["http_options"]
    host, port = options.get("host", "127.0.0.1"), options.get("port", 8000)
    if not is_free(host, port):
        print(f"{host}:{port} is in use; choose another: make serve PORT=...", file=sys.stderr)
        return 2
    config = overrides.with_model(
        config, os.environ.get("TTS_MODEL"), os.environ.get("TTS_REVISION")
    )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A shell that starts this in the background has Ctrl-C ignored, and with it the way to stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="tts-serve-") as folder:
        config = overrides.with_env(config, haproxy_env(Path(folder)))
        path = Path(folder) / "serve.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        print(f"starting on http://{host}:{port}; ready when GET /ready answers 200", flush=True)
        return run(path)


def run(config: Path) -> int:
    """Call `serve run` in this process; returns when it was interrupted."""
    from ray.serve.scripts import cli

    try:
        cli.main(["run", str(config)], standalone_mode=False)
    except (KeyboardInterrupt, SystemExit):
        return 0
    return 0


def haproxy_env(folder: Path) -> dict[str, str]:
    """Choose sockets in `folder`, and the usual ports where they are free."""
    return {
        # How long an ingress replica lingers for proxies that have not heard of its end; the only
        # one is on this machine, and Ctrl-C should not take the usual half a minute.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port(9101)),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port(8404)),
    }


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
    with socket.socket() as probe:
        probe.bind(("0.0.0.0", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
