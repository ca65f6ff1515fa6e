"""What the launcher changes in a Serve config it has read: address, model, profile, environment.

Each function returns a changed copy.
"""

from typing import Any

from serve_app.serve_config import BUILDER


def with_address(
    config: dict[str, Any], host: str | None = None, port: int | None = None
) -> dict[str, Any]:
    """Return a copy that listens on `host` and `port` where they are given."""
    given = {"host": host, "port": port}
    options = {key: value for key, value in given.items() if value is not None}
    return {**config, "http_options": {**config.get("http_options", {}), **options}}


def with_model(config: dict[str, Any], model: str | None, revision: str | None) -> dict[str, Any]:
    """Return a copy that serves `model` where the file itself names none.

    The application is built by a Ray worker, which need not have the environment of this process.
    """
    given = {"model": model, "revision": revision}
    named = {key: value for key, value in given.items() if value}
    return {
        **config,
        "applications": [
            {**application, "args": {**named, **application.get("args", {})}}
            if application.get("import_path") == BUILDER
            and not application.get("args", {}).get("model")
            else application
            for application in config["applications"]
        ],
    }


def with_profile(config: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """Return a copy that serves with `profile`; limits follow when the application is built."""
    if not profile:
        return config
    return {
        **config,
        "applications": [
            {**application, "args": {**application.get("args", {}), "profile": profile}}
            if application.get("import_path") == BUILDER
            else application
            for application in config["applications"]
        ],
    }


def with_env(config: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """Return a copy whose controller, and with it every proxy and replica, gets `env` as well."""
    options = config.get("controller_options") or {}
    runtime_env = options.get("runtime_env") or {}
    merged = {**runtime_env.get("env_vars", {}), **env}
    return {
        **config,
        "controller_options": {**options, "runtime_env": {**runtime_env, "env_vars": merged}},
    }
