"""The composition root: typed arguments in, Serve application out. The only place that binds
deployments.

split:  Ingress -> SpeechDecoder -> Talker -> CodePredictor
fused:  Ingress -> Fused

With a checkpoint that clones voices, Ingress -> VoiceEncoder as well.

`build` makes one application of all of it; `build_http` and `build_model` make one of the ingress
and one of each model, so that models come and go by themselves (docs/several.md).
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar

import ray
from pydantic import ValidationError
from ray import serve
from ray.serve import Application

from serve_app.check import faults
from serve_app.config import CPU_ENV, AppConfig, Device, Environment, HttpConfig, IngressConfig
from serve_app.deployments.limits import (
    LONGEST_S,
    deployment_options,
    ingress_options,
    places_of,
    voice_encoder_options,
)
from serve_app.deployments.ray_serve import colocation, gpu_memory, starts
from serve_app.serve_config import lines

C = TypeVar("C", AppConfig, HttpConfig)

# What one replica of everything may take of the CPUs of a machine that has fewer than were asked
# for.
_SMALL_MACHINE_SHARE: Final = 0.9
# The same where it is one application of several, of which more may come.
_SHARE_OF_SEVERAL: Final = _SMALL_MACHINE_SHARE / 8
BACKEND: Final = "vllm"

# Replicas reach each other by gRPC, which would ask the proxy that http_proxy of their node names.
# What is loaded from a hub goes another way.
_PAST_PROXY: Final = {"grpc_proxy": ""}
# Ray lets a replica without a GPU share see all GPUs.
_NO_GPU_ENV: Final = {"CUDA_VISIBLE_DEVICES": ""}

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class ResourcePlan:
    """Where everything runs and why.

    Attributes:
        devices: cuda or cpu of each stage's deployment.
        reason: of the application's device, and what else was decided.
        actor_options: complete for each deployment.
    """

    devices: Mapping[str, str]
    reason: str
    actor_options: Mapping[str, dict[str, Any]]


# What Serve calls a builder with: mappings, since of a model in the annotation it would make one
# itself, and log what is wrong where nobody looks.
Args: TypeAlias = Mapping[str, Any]


def build(args: AppConfig | Args) -> Application:
    """Build the application that configs/serve.yaml and configs/serve.fused.yaml describe.

    Whatever it raises becomes the status of the application at once. It is printed as well, since
    in the terminal of `serve run` nothing else is said of it.

    Raises:
        ValueError: a setting is wrong or has no effect; the keys or the files of the checkpoint
            cannot be used; the device asked for does not exist or has too little memory; the
            stages cannot share a GPU as is required.
        CheckpointError: the checkpoint cannot be served.
    """
    from serve_app.deployments.ingress import Ingress

    with _saying_why():
        config = _parsed(AppConfig, args).resolved()
        _check_files(config.ingress, config)
        model = _model(config, small_share=_SMALL_MACHINE_SHARE)
        ingress = _options(Ingress, model.plan, model.limits)
        return ingress.bind(config.ingress, model.info, model.speech)


def build_model(args: AppConfig | Args) -> Application:
    """Build an application that serves a model to the ingresses of other applications.

    Raises:
        ValueError: as `build`, and for settings of an ingress, which it does not have.
        CheckpointError: as `build`.
    """
    from serve_app.deployments.ray_serve import front

    with _saying_why():
        stated = _parsed(AppConfig, args)
        if stated.misplaced():
            names = ", ".join(stated.misplaced())
            raise ValueError(f"ingress: {names} have no effect in an application without one")
        config = stated.resolved()
        _check_files(None, config)
        model = _model(config, small_share=_SHARE_OF_SEVERAL, ingress=False)
        top: Any = front.Front
        return top.options(**front.OPTIONS).bind(model.speech)


def build_http(args: HttpConfig | Args) -> Application:
    """Build an application of ingresses only, for the models of other applications.

    Raises:
        ValueError: a setting is wrong, or keys cannot be used.
    """
    from serve_app.deployments.ingress import Ingress

    with _saying_why():
        config = _parsed(HttpConfig, args)
        _check_files(config.ingress, None)
        cluster = ray.cluster_resources()
        plan = make_http_plan(config, cluster)
        limits = ingress_options(config.streams, LONGEST_S, cluster.get("CPU", 0.0))
        ingress = _options(Ingress, plan, {"Ingress": limits})
        return ingress.bind(config.ingress, {"backend": BACKEND})


@contextmanager
def _saying_why() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        starts.print_why("the application", error)
        raise


def _parsed(kind: type[C], args: C | Args) -> C:
    if isinstance(args, kind):
        return args
    try:
        return kind.model_validate(args)
    except ValidationError as error:
        raise ValueError("; ".join(lines(error, "args."))) from None


def _check_files(ingress: IngressConfig | None, config: AppConfig | None) -> None:
    """Refuse what every replica would refuse, each after its own minute.

    Where there are several nodes, they may have what this one has not.
    """
    is_alone = sum(bool(node["Alive"]) for node in ray.nodes()) == 1
    environment = Environment.read()
    found: list[str] = []
    if ingress is not None and is_alone:
        found += faults.of_keys(environment, [ingress.access.keys_file])
    if config is not None and config.model and config.model not in environment.checked:
        folder = Path(config.model).expanduser()
        if is_alone or any(folder.glob("*.safetensors")):
            found += faults.of_model(config.model, config.revision)
    if found:
        raise ValueError("; ".join(found))


@dataclass(frozen=True)
class _Model:
    """The stages of a model, bound; plan and limits of its whole application; for `/health`."""

    speech: Application
    plan: ResourcePlan
    limits: Mapping[str, dict[str, Any]]
    info: Mapping[str, Any]


def _model(config: AppConfig, *, small_share: float, ingress: bool = True) -> _Model:
    from serve_app.models.checkpoint.card import describe
    from serve_app.models.checkpoint.locate import description_folder

    cluster = ray.cluster_resources()
    plan = make_plan(config, cluster, small_share=small_share, ingress=ingress)
    # Limits follow from it, and what cannot be served is refused here. Ingresses ask the stages.
    folder = description_folder(config)
    if "cuda" in plan.devices.values():
        config = gpu_memory.suited(config, folder)
    card = describe(config, folder)
    longest_s = card.max_new_tokens / card.frame_rate_hz
    limits = deployment_options(config, longest_s, cluster.get("CPU", 0.0))
    gpus = colocation.gpus_of_nodes(ray.nodes())
    limits = colocation.with_sets(limits, colocation.sets_per_node(config, plan.devices, gpus))
    info = {
        "backend": BACKEND,
        "placement": config.placement,
        "devices": dict(plan.devices),
        "device_reason": plan.reason,
        "profile": config.profile,
        "config_digest": config.digest,
    }
    logger.info(
        "serving %s from %s on %s (%s), placement %s, config %s",
        card.name,
        card.path,
        ", ".join(sorted(set(plan.devices.values()))),
        plan.reason,
        config.placement,
        config.digest,
    )
    logger.info("configuration %s: %s", config.digest, config.shown())
    logger.info("limits where the config file states none: %s", limits)
    if card.embedded:
        logger.info(
            "the embedded voice, a small English one; set TTS_MODEL for a released checkpoint"
        )
    beside = [voice_encoder(config, cluster)] if card.speaker_vector_size is not None else []
    return _Model(bind(config, plan, limits, info, *beside), plan, limits, info)


def bind(
    config: AppConfig,
    plan: ResourcePlan,
    limits: Mapping[str, dict[str, Any]],
    info: Mapping[str, Any],
    *beside: Application,
) -> Application:
    """Compose the stages of one placement; what an ingress calls.

    `beside` are deployments that the ingress finds by name, and that have to start with the others.
    """
    from serve_app.deployments.code_predictor import CodePredictorDeployment
    from serve_app.deployments.fused import Fused
    from serve_app.deployments.speech_decoder import SpeechDecoderDeployment
    from serve_app.deployments.talker import TalkerDeployment
    from serve_app.load.gate import StageLimits
    from serve_app.load.served import About

    devices = plan.devices
    about = About(
        StageLimits(places_of(config), config.talker.max_queued, config.talker.max_wait_s), info
    )
    if config.placement == "fused":
        return _options(Fused, plan, limits).bind(config, devices["Fused"], about, *beside)
    predictor = _options(CodePredictorDeployment, plan, limits).bind(
        config, devices["CodePredictor"]
    )
    talker = _options(TalkerDeployment, plan, limits).bind(config, devices["Talker"], predictor)
    decoder = _options(SpeechDecoderDeployment, plan, limits)
    return decoder.bind(config, devices["SpeechDecoder"], talker, about, *beside)


def voice_encoder(config: AppConfig, cluster: Mapping[str, float]) -> Application:
    """The deployment beside the stages, on any device that its node has: no frame waits for it."""
    from serve_app.deployments.voice_encoder import VoiceEncoderDeployment

    settings = config.voice_encoder
    wanted = _device(settings.device or config.device, cluster.get("GPU", 0.0))
    env = {"OMP_NUM_THREADS": str(settings.num_threads)}
    shares = {"VoiceEncoder": settings.num_gpus if wanted == "cuda" else 0.0}
    envs = {"VoiceEncoder": env if wanted == "cuda" else {**env, **_NO_GPU_ENV}}
    labels = {"VoiceEncoder": settings.node_labels}
    cpus = {"VoiceEncoder": settings.num_cpus}
    options = _actor_options(cpus, shares, envs, labels)["VoiceEncoder"]
    deployment: Any = VoiceEncoderDeployment
    deployment = deployment.options(ray_actor_options=options, **voice_encoder_options(settings))
    return deployment.bind(config, wanted if shares["VoiceEncoder"] else "auto")


# Any: the decorator's type says that a class becomes a function.
def _options(
    deployment: Any, plan: ResourcePlan, limits: Mapping[str, dict[str, Any]]
) -> serve.Deployment:
    name = deployment.name
    return deployment.options(ray_actor_options=plan.actor_options[name], **limits[name])


def make_plan(
    config: AppConfig,
    cluster: Mapping[str, float],
    *,
    small_share: float = _SMALL_MACHINE_SHARE,
    ingress: bool = True,
) -> ResourcePlan:
    """Decide device and resources from the configuration and what `ray.cluster_resources()` says.

    `small_share` is what the application may reserve of the CPUs of a machine that has few,
    `ingress` whether it has one.

    Raises:
        ValueError: a device is cuda, and no node has a GPU.
    """
    gpus = cluster.get("GPU", 0.0)
    stages = {
        "Talker": config.talker,
        "CodePredictor": config.code_predictor,
        "SpeechDecoder": config.speech_decoder,
    }
    devices = {name: _device(stage.device or config.device, gpus) for name, stage in stages.items()}
    own = [f"{name} {stage.device!r}" for name, stage in stages.items() if stage.device]
    reason = f"device {config.device!r} configured"
    if config.device == "auto":
        reason = f"device 'auto', the Ray cluster has {gpus:g} GPUs"
    if own:
        reason += f", of {' and '.join(own)}"

    cpus: dict[str, float] = {name: stage.num_cpus for name, stage in stages.items()}
    gpu_shares: dict[str, float] = {
        name: stage.num_gpus if devices[name] == "cuda" else 0.0 for name, stage in stages.items()
    }
    labels = {name: stage.node_labels for name, stage in stages.items()}
    labels["Ingress"] = config.ingress.node_labels
    if config.placement == "fused":
        labels["Fused"] = config.talker.node_labels
        # Rounded, or 0.5 + 0.2 + 0.3 would be more than the one GPU there is.
        cpus = {"Fused": round(sum(cpus.values()), 4)}
        gpu_shares = {"Fused": round(sum(gpu_shares.values()), 4)}
        devices = {"Fused": devices["Talker"]}
    if ingress:
        cpus["Ingress"] = config.ingress.num_cpus
    cpus, scaled = _fit(cpus, cluster.get("CPU", math.inf), small_share)

    env: dict[str, Mapping[str, str]] = {"Ingress": _NO_GPU_ENV} if ingress else {}
    for name, device in devices.items():
        env[name] = dict(CPU_ENV) if device == "cpu" else {}
    return ResourcePlan(devices, reason + scaled, _actor_options(cpus, gpu_shares, env, labels))


def make_http_plan(config: HttpConfig, cluster: Mapping[str, float]) -> ResourcePlan:
    """As `make_plan`, of an application that has an ingress only."""
    available = cluster.get("CPU", math.inf)
    cpus, scaled = _fit({"Ingress": config.ingress.num_cpus}, available, _SHARE_OF_SEVERAL)
    labels = {"Ingress": config.ingress.node_labels}
    return ResourcePlan({}, scaled, _actor_options(cpus, {}, {"Ingress": _NO_GPU_ENV}, labels))


def _actor_options(
    cpus: Mapping[str, float],
    gpu_shares: Mapping[str, float],
    env: Mapping[str, Mapping[str, str]],
    labels: Mapping[str, Mapping[str, str]],
) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "num_cpus": cpus[name],
            "num_gpus": gpu_shares.get(name, 0.0),
            "runtime_env": {"env_vars": {**_PAST_PROXY, **env[name]}},
            **({"label_selector": dict(labels[name])} if labels[name] else {}),
        }
        for name in cpus
    }


def _device(wanted: Device, gpus: float) -> str:
    if wanted == "cuda" and not gpus:
        raise ValueError("device is 'cuda' but no node of the Ray cluster has a GPU")
    return ("cuda" if gpus else "cpu") if wanted == "auto" else wanted


def _fit(cpus: dict[str, float], available: float, share: float) -> tuple[dict[str, float], str]:
    """Scale the reservations down where one replica of everything would not fit, and a second
    ingress: in an update it is there before the first one goes.

    Ray's CPU numbers are bookkeeping: a machine with two cores runs all stages, only it must not be
    asked for more than it has, or a replica would wait for ever.
    """
    wanted = sum(cpus.values())
    at_most = wanted + cpus.get("Ingress", 0.0)
    if not available or at_most <= available * share:
        return cpus, ""
    factor = available * share / at_most
    scaled = {name: max(math.floor(cpu * factor * 1000), 1) / 1000 for name, cpu in cpus.items()}
    return (
        scaled,
        f"; {wanted:g} CPUs reserved as {sum(scaled.values()):g}, the cluster has {available:g}",
    )
