"""Strict reading of configs/*.yaml.

Ray Serve drops keys it does not know without a word, so that `min_replica: 2` changes nothing and
says nothing. Here every key is looked up in the models that Serve validates with, `args` is
validated as AppConfig, and what this application reserves for its builder is refused.
"""

import os
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import (
    AutoscalingConfig,
    DeploymentActorConfig,
    GangSchedulingConfig,
    RequestRouterConfig,
)
from ray.serve.schema import ServeDeploySchema

from serve_app.config import AppConfig

# Serve types these as plain dicts, or as a dict or a model; the model is what reads them in the
# end.
_MODELS_OF_DICTS: Final[dict[str, type[BaseModel]]] = {
    "autoscaling_config": AutoscalingConfig,
    "deployment_actors": DeploymentActorConfig,
    "gang_scheduling_config": GangSchedulingConfig,
    "request_router_config": RequestRouterConfig,
}

# Serve replaces these as a whole by what the YAML says: the environment and the device that the
# builder gave a deployment would be lost with the rest.
_BUILDER_ONLY: Final = ("ray_actor_options", "placement_group_bundles", "placement_group_strategy")

# A request of 5 s costs an ingress 4 ms of its event loop, and 48 streams of such end up to 120
# times a second: half of a fast core, most of a slow one.
_STREAMS_PER_INGRESS: Final = 48

BUILDER: Final = "serve_app.app:build"
STAGES: Final[dict[str, tuple[str, ...]]] = {
    "split": ("Ingress", "SpeechDecoder", "Talker", "CodePredictor"),
    "fused": ("Ingress", "Fused"),
}


class ServeConfigError(ValueError):
    """A Serve config file has faults; `problems` lists all of them."""

    def __init__(self, path: str, problems: list[str]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = problems

    def __str__(self) -> str:
        return "\n  ".join([f"{self.path}:", *self.problems])


def load(path: str | Path) -> dict[str, Any]:
    """Read and check a config file.

    Raises:
        ServeConfigError: it is not YAML, or Serve or this application would reject or ignore a part
            of it.
    """
    try:
        config = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ServeConfigError(str(path), [str(error)]) from error
    if not isinstance(config, dict):
        raise ServeConfigError(str(path), ["not a mapping"])
    problems = list(find_problems(config))
    if problems:
        raise ServeConfigError(str(path), problems)
    return config


def find_problems(config: dict[str, Any]) -> Iterator[str]:
    """Yield one line for each fault of a Serve config, unknown keys first."""
    yield from _unknown_keys(config, ServeDeploySchema, "")
    try:
        ServeDeploySchema.model_validate(config)
    except ValidationError as error:
        yield from _lines(error, "")
        return
    for index, application in enumerate(config.get("applications", [])):
        yield from _application_problems(application, f"applications[{index}].")


def _application_problems(application: dict[str, Any], path: str) -> Iterator[str]:
    if application.get("import_path") != BUILDER:
        return  # another application in the same file has rules of its own
    try:
        args = AppConfig.model_validate(application.get("args", {}))
    except ValidationError as error:
        yield from _lines(error, f"{path}args.")
        return
    known = STAGES[args.placement]
    capacity = {"Fused": args.talker.max_num_seqs, "Talker": args.talker.max_num_seqs}
    for deployment in application.get("deployments", []):
        name = deployment.get("name")
        if name not in known:
            yield (
                f"{path}deployments: no deployment {name!r} in placement {args.placement!r};"
                f" there are {', '.join(known)}"
            )
        streams, limit = capacity.get(name, 0), deployment.get("max_ongoing_requests")
        if limit is not None and limit < streams:
            yield (
                f"{path}deployments.{name}.max_ongoing_requests: {limit} is less than the {streams}"
                " streams of talker.max_num_seqs, which could never run together"
            )
        for key in _BUILDER_ONLY:
            if key in deployment:
                yield (
                    f"{path}deployments.{name}.{key}: set num_cpus and num_gpus under `args`;"
                    " Serve would drop what the builder puts here"
                )


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


def _unknown_keys(data: dict[str, Any], model: type[BaseModel], path: str) -> Iterator[str]:
    for key, value in data.items():
        field = model.model_fields.get(key)
        if field is None:
            yield f"{path}{key}: unknown key; known are {', '.join(sorted(model.model_fields))}"
            continue
        nested = _MODELS_OF_DICTS.get(key) or _model_in(field.annotation)
        if nested is None:
            continue
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(item, dict):
                at = f"[{item.get('name', index)}]" if isinstance(value, list) else ""
                yield from _unknown_keys(item, nested, f"{path}{key}{at}.")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Find the pydantic model in an annotation such as `list[Model] | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    found = (_model_in(argument) for argument in typing.get_args(annotation))
    return next((model for model in found if model), None)


def _lines(error: ValidationError, path: str) -> Iterator[str]:
    for fault in error.errors():
        yield f"{path}{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
