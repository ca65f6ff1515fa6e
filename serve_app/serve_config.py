"""Strict reading of configs/*.yaml.

Ray Serve drops keys it does not know without a word, so that `min_replica: 2` changes nothing and
says nothing. Here every key is looked up in the models that Serve validates with, `args` is
validated as AppConfig, and what this application reserves for its builder is refused.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.config import (
    AutoscalingConfig,
    AutoscalingPolicy,
    DeploymentActorConfig,
    GangSchedulingConfig,
    RequestRouterConfig,
)
from ray.serve.schema import RayActorOptionsSchema, ServeDeploySchema

from serve_app.config import (
    BUILDER,
    HTTP_BUILDER,
    MODEL_BUILDER,
    AppConfig,
    HttpConfig,
    LiveSettings,
)
from serve_app.launch.several import STAGES as STAGES
from serve_app.launch.several import deployments_of, find_clashes
from serve_app.scaling.tuning import Tuning

# Serve types these as plain dicts, or as a dict or a model; the model is what reads them in the
# end.
_MODELS_OF_DICTS: Final[dict[str, type[BaseModel]]] = {
    "autoscaling_config": AutoscalingConfig,
    "autoscaling_policy": AutoscalingPolicy,
    "deployment_actors": DeploymentActorConfig,
    "gang_scheduling_config": GangSchedulingConfig,
    "request_router_config": RequestRouterConfig,
}

# Serve replaces these as a whole by what the YAML says: the environment and the device that the
# builder gave a deployment would be lost with the rest.
_BUILDER_ONLY: Final = ("ray_actor_options", "placement_group_bundles", "placement_group_strategy")

_PACKAGE: Final = "serve_app"
_LONGEST_IDLE_S: Final = 86400
POLICY: Final = "serve_app.deployments.autoscaling:InProportion"
# Who reads `args`.
BUILDERS: Final[Mapping[str, type[AppConfig | HttpConfig]]] = {
    BUILDER: AppConfig,
    MODEL_BUILDER: AppConfig,
    HTTP_BUILDER: HttpConfig,
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
    except OSError as error:
        raise ServeConfigError(str(path), [error.strerror or str(error)]) from error
    except UnicodeDecodeError as error:
        raise ServeConfigError(str(path), [f"not UTF-8: {error}"]) from error
    except yaml.YAMLError as error:
        raise ServeConfigError(str(path), [str(error)]) from error
    if not isinstance(config, dict):
        says = "not a Serve config file, which is a mapping with the key `applications`"
        raise ServeConfigError(str(path), [f"{says}; configs/serve.yaml is one"])
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
        yield from lines(error, "")
        return
    except AttributeError:  # Serve looks into each deployment before it checks what it is
        yield "applications: one of their `deployments` is not a mapping with a name"
        return
    http = config.get("http_options") or {}
    port, idle_s = http.get("port"), http.get("keep_alive_timeout_s")
    if port is not None and not 0 < int(port) < 1 << 16:
        yield f"http_options.port: {port} is no port; they go from 1 to 65535"
    if idle_s is not None and not 0 <= int(idle_s) <= _LONGEST_IDLE_S:
        yield f"http_options.keep_alive_timeout_s: {idle_s} is not between 0 and {_LONGEST_IDLE_S}"
    applications = config.get("applications", [])
    if not applications:
        yield "applications: there is none"
    found = False
    for index, application in enumerate(applications):
        for problem in _application_problems(application, f"applications[{index}]."):
            found = True
            yield problem
    if not found:
        yield from find_clashes(applications)


def _application_problems(application: dict[str, Any], path: str) -> Iterator[str]:
    builder = application["import_path"]
    if builder not in BUILDERS:
        if builder.startswith(f"{_PACKAGE}."):
            yield f"{path}import_path: {builder} does not exist; there are {', '.join(BUILDERS)}"
        return  # another application in the same file has rules of its own
    if not application.get("name"):
        yield f"{path}name: is missing; any name will do"
    route = application.get("route_prefix", "/")
    if builder != MODEL_BUILDER and not (route and route.startswith("/")):
        yield f"{path}route_prefix: is {route!r}; it has to begin with /"
    policy = application.get("autoscaling_policy") or {}
    function = policy.get("policy_function", "")  # by default Serve's
    if function == POLICY:
        try:
            Tuning(**policy.get("policy_kwargs", {}))
        except TypeError as error:
            yield f"{path}autoscaling_policy.policy_kwargs: {error}"
    elif not isinstance(function, str) or function.startswith(f"{_PACKAGE}."):
        at = f"{path}autoscaling_policy.policy_function"
        yield f"{at}: {function!r} does not exist; {POLICY} does"
    try:
        args = BUILDERS[builder].model_validate(application.get("args", {}))
    except ValidationError as error:
        yield from lines(error, f"{path}args.")
        return
    if builder == MODEL_BUILDER and isinstance(args, AppConfig):
        if application.get("route_prefix", "/") is not None:
            yield f"{path}route_prefix: has to be null, this application has no ingress"
        for name in args.misplaced():
            yield f"{path}args.ingress.{name}: has no effect in an application without an ingress"
    yield from _label_problems(args, f"{path}args.")
    known = deployments_of(builder, application.get("args", {}))
    streams = args.talker.max_num_seqs if isinstance(args, AppConfig) else 0
    for deployment in application.get("deployments", []):
        yield from _deployment_problems(deployment, known, streams, path)


def _deployment_problems(
    deployment: dict[str, Any], known: tuple[str, ...], streams: int, path: str
) -> Iterator[str]:
    name = deployment.get("name")
    at = f"{path}deployments.{name}."
    if name not in known:
        yield f"{path}deployments: no deployment {name!r} here; there are {', '.join(known)}"
    if name not in ("Fused", "Talker"):
        streams = 0
    limit = deployment.get("max_ongoing_requests")
    if limit is not None and limit < streams:
        yield (
            f"{at}max_ongoing_requests: {limit} is less than the {streams}"
            " streams of talker.max_num_seqs, which could never run together"
        )
    scaling = deployment.get("autoscaling_config")
    if isinstance(scaling, dict) and "target_ongoing_requests" not in scaling:
        yield (
            f"{at}autoscaling_config: lacks target_ongoing_requests; Serve"
            " takes these settings as a whole, and would add replicas from 2 requests each on"
        )
    for key in _BUILDER_ONLY:
        if key in deployment:
            yield (
                f"{at}{key}: set num_cpus and num_gpus under `args`;"
                " Serve would drop what the builder puts here"
            )
    if "user_config" in deployment:
        if name != "Ingress":
            yield f"{at}user_config: only the ingress has settings that change while it runs"
            return
        try:
            LiveSettings.model_validate(deployment["user_config"] or {})
        except ValidationError as error:
            yield from lines(error, f"{at}user_config.")


def _label_problems(args: AppConfig | HttpConfig, path: str) -> Iterator[str]:
    """Ray knows a label selector from nonsense, but first when a replica is to start."""
    for name in type(args).model_fields:
        labels = getattr(getattr(args, name), "node_labels", {})
        try:
            RayActorOptionsSchema(label_selector=dict(labels))
        except ValidationError as error:
            yield from lines(error, f"{path}{name}.node_labels: ")


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


def lines(error: ValidationError, path: str) -> Iterator[str]:
    """One line for each fault, with the key below `path`."""
    for fault in error.errors():
        yield f"{path}{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
