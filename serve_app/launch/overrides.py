"""What the launcher changes in a Serve config it has read: address, model, profile, environment.

Each function returns a changed copy.
"""

import os
from typing import Any, Final

from serve_app.config import AppConfig
from serve_app.serve_config import BUILDER

# A request of 5 s costs an ingress 4 ms of its event loop, and 48 streams of such end up to 120
# times a second: half of a fast core, most of a slow one.
_STREAMS_PER_INGRESS: Final = 48


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


def ingresses(streams: int) -> int:
    """Ingresses that so many streams keep busy, but not too busy.

    No more than half of this machine's cores: on a small one the others would never find room.
    """
    return max(1, min(-(-streams // _STREAMS_PER_INGRESS), (os.cpu_count() or 1) // 2))


def with_profile(config: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """Return a copy that serves with `profile`, and with the limits that its streams ask for.

    A stage takes twice as many requests as it has streams, so that the next ones wait beside it,
    and scales at three quarters of them. One replica has as many ingresses as its streams need, if
    this machine has the cores.
    """
    if not profile:
        return config
    return {
        **config,
        "applications": [
            _profiled(application, profile)
            if application.get("import_path") == BUILDER
            else application
            for application in config["applications"]
        ],
    }


def _profiled(application: dict[str, Any], profile: str) -> dict[str, Any]:
    args = {**application.get("args", {}), "profile": profile}
    resolved = AppConfig.model_validate(args)
    talker, decoder = resolved.talker.max_num_seqs, resolved.speech_decoder.max_streams
    streams = {"Fused": talker, "Talker": talker, "SpeechDecoder": decoder}

    def limited(deployment: dict[str, Any]) -> dict[str, Any]:
        if deployment["name"] == "Ingress" and "autoscaling_config" in deployment:
            scaling = deployment["autoscaling_config"]
            replicas = max(scaling.get("min_replicas", 1), ingresses(talker))
            return {**deployment, "autoscaling_config": {**scaling, "min_replicas": replicas}}
        count = streams.get(deployment["name"])
        if count is None:
            return deployment
        scaling = deployment.get("autoscaling_config")
        target = {"target_ongoing_requests": count * 3 // 4}
        return {
            **deployment,
            "max_ongoing_requests": 2 * count,
            **({"autoscaling_config": {**scaling, **target}} if scaling else {}),
        }

    deployments = [limited(deployment) for deployment in application.get("deployments", [])]
    return {**application, "args": args, "deployments": deployments}


def with_env(config: dict[str, Any], env: dict[str, str]) -> dict[str, Any]:
    """Return a copy whose controller, and with it every proxy and replica, gets `env` as well."""
    options = config.get("controller_options") or {}
    runtime_env = options.get("runtime_env") or {}
    merged = {**runtime_env.get("env_vars", {}), **env}
    return {
        **config,
        "controller_options": {**options, "runtime_env": {**runtime_env, "env_vars": merged}},
    }
