"""What the launcher changes in a Serve config it has read: address, model, profile, environment.

Each function returns a changed copy.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from serve_app.config import BUILDER, HTTP_BUILDER, MODEL_BUILDER, SHARED_WITH_STAGES, AppConfig
from serve_app.launch.several import WITH_MODEL, served_name


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
            if application.get("import_path") in WITH_MODEL
            and not application.get("args", {}).get("model")
            else application
            for application in config["applications"]
        ],
    }


def with_models(config: dict[str, Any], models: Sequence[str], gpus: int = 0) -> dict[str, Any]:
    """Return a copy that serves each of `models` ("model", or "name=model" for another name).

    One takes the place of the file's; several become applications of their own beside one for the
    ingress, each with the settings of the file's.

    The first of `models` is the default. `gpus` are those of this machine: where there are fewer
    than models, several share one.

    Raises:
        ValueError: the file does not have one application that names no model.
    """
    applications = config["applications"]
    ours = [a for a in applications if a.get("import_path") in (*WITH_MODEL, HTTP_BUILDER)]
    stated = [a for a in ours if {"model", "served_model_name"} & a.get("args", {}).keys()]
    if len(ours) != 1 or ours[0]["import_path"] != BUILDER or stated:
        raise ValueError("--model: the config file has models of its own; state all of them there")
    (base,) = ours
    args = [_model_args(base.get("args", {}), model) for model in models]
    if len(args) == 1:
        made = [{**base, "args": args[0]}]
    else:
        share = min(1.0, gpus / len(args)) if gpus else 1.0
        made = [_front(base, args[0])]
        made += [_behind(base, own, share) for own in args]
        _number(made)
    others = [a for a in applications if a is not base]
    return {**config, "applications": [*made, *others]}


def _model_args(args: dict[str, Any], model: str) -> dict[str, Any]:
    name, given, path = model.rpartition("=")
    if (given and not name) or not path:
        raise ValueError(f"--model {model!r}: state a model, or NAME=MODEL")
    folder = Path(path).expanduser()
    if folder.is_dir():
        path = str(folder.resolve())  # a replica has another working directory
    return {**args, "model": path, **({"served_model_name": name} if name else {})}


def _front(base: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """The application of the ingress."""
    settings = {"default_model": default.get("served_model_name") or default["model"]}
    ingresses = [d for d in base.get("deployments", []) if d["name"] == "Ingress"]
    of_ingress = ingresses[0] if ingresses else {"name": "Ingress"}
    ingress = base.get("args", {}).get("ingress")
    return {
        **base,
        "import_path": HTTP_BUILDER,
        "args": {"ingress": ingress} if ingress else {},
        "deployments": [{**of_ingress, "user_config": settings}],
    }


def _behind(base: dict[str, Any], args: dict[str, Any], share: float) -> dict[str, Any]:
    """The application of one model, with its part of what the file's has of a GPU."""
    ingress = {k: v for k, v in args.get("ingress", {}).items() if k in SHARED_WITH_STAGES}
    kept = {name: value for name, value in args.items() if name != "ingress"}
    if ingress:
        kept["ingress"] = ingress
    if share < 1.0:
        whole = AppConfig.model_validate(kept)
        for stage in ("talker", "code_predictor", "speech_decoder"):
            part = math.floor(getattr(whole, stage).num_gpus * share * 1e4) / 1e4
            kept[stage] = {**kept.get(stage, {}), "num_gpus": part}
    name = PurePath(served_name(args)).name
    return {
        **base,
        "name": re.sub(r"[^a-z0-9]+", "-", name.casefold()).strip("-") or "model",
        "route_prefix": None,
        "import_path": MODEL_BUILDER,
        "args": kept,
        "deployments": [d for d in base.get("deployments", []) if d["name"] != "Ingress"],
    }


def _number(applications: list[dict[str, Any]]) -> None:
    """Tell applications of one name apart."""
    taken: set[str] = set()
    for application in applications:
        name, number = application["name"], 2
        while application["name"] in taken:
            application["name"] = f"{name}-{number}"
            number += 1
        taken.add(application["name"])


def with_profile(config: dict[str, Any], profile: str | None) -> dict[str, Any]:
    """Return a copy that serves with `profile`; limits follow when the application is built."""
    if not profile:
        return config
    return {
        **config,
        "applications": [
            {**application, "args": {**application.get("args", {}), "profile": profile}}
            if application.get("import_path") in WITH_MODEL
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
