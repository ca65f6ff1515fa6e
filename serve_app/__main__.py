"""`python -m serve_app [config.yaml]`: `serve run` with a strict check of the config, HOST, PORT
and PROFILE.

What Serve gets is the file as it stands plus these, on a Ray cluster of its own unless RAY_ADDRESS
names one, and with ports and socket paths of HAProxy that are free on this machine.
"""

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Final

import yaml

from serve_app.config import Environment
from serve_app.launch import cluster, haproxy

DEFAULT_CONFIG: Final = "configs/serve.yaml"


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        print("usage: python -m serve_app [config.yaml]", file=sys.stderr)
        return 2
    # These import Ray, which reads its environment then.
    from serve_app import serve_config
    from serve_app.launch import ahead, overrides

    try:
        config = serve_config.load(arguments[0] if arguments else DEFAULT_CONFIG)
        environment = Environment.read()
        config = overrides.with_profile(config, environment.profile)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    config = overrides.with_address(config, environment.host, environment.port)
    options = config["http_options"]
    host, port = options.get("host", "127.0.0.1"), options.get("port", 8000)
    if not haproxy.is_free(host, port):
        print(f"{host}:{port} is in use; choose another: make serve PORT=...", file=sys.stderr)
        return 2
    config = overrides.with_model(config, environment.model, environment.revision)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # A shell that starts this in the background has Ctrl-C ignored, and with it the way to stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="tts-serve-") as folder:
        config = overrides.with_env(config, haproxy.environment(Path(folder)))
        config = ahead.with_standbys(config, Path(folder) / "standby")
        path = Path(folder) / "serve.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        print(f"starting on http://{host}:{port}; ready when GET /ready answers 200", flush=True)
        return run(path)


def run(config: Path) -> int:
    """Call `serve run` in this process; returns when it was interrupted."""
    from ray.serve.scripts import cli

    try:
        cluster.connect()
        cli.main(["run", str(config)], standalone_mode=False)
    except (KeyboardInterrupt, SystemExit):
        return 0
    return 0


if __name__ == "__main__":
    cluster.prepare_environment()
    sys.exit(main(sys.argv[1:]))
