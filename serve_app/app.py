"""The composition root: typed arguments in, Serve application out. The only place that binds
deployments.

split:  Ingress -> SpeechDecoder -> Talker -> CodePredictor
fused:  Ingress -> Fused
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import ray
from ray import serve
from ray.serve import Application

from serve_app.config import AppConfig, Device
from serve_app.deployments.limits import deployment_options, places_of

# What one replica of everything may take of the CPUs of a machine that has fewer than were asked
# for.
_SMALL_MACHINE_SHARE: Final = 0.9

# Before torch is imported; what vLLM reads is set by models/talker/vllm/core.py.
_CPU_ENV: Final = {
    # More threads than cores that are free make a step many times slower, not faster.
    "OMP_NUM_THREADS": "1",
}
# Ray lets a replica without a GPU share see all GPUs.
_NO_GPU_ENV: Final = {"CUDA_VISIBLE_DEVICES": ""}

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Plan:
    """Where everything runs and why.

    Attributes:
        devices: cuda or cpu of each stage's deployment.
        reason: of the application's device, and what else was decided.
        actor_options: complete for each deployment.
    """

    devices: Mapping[str, str]
    reason: str
    actor_options: Mapping[str, dict[str, Any]]


def build(args: AppConfig) -> Application:
    """Build the application that configs/*.yaml describe.

    Raises:
        ValueError: the device asked for does not exist.
        CheckpointError: the checkpoint cannot be served.
    """
    from serve_app.models.checkpoint.card import describe
    from serve_app.models.checkpoint.locate import description_folder

    config = args.resolved()
    cluster = ray.cluster_resources()
    plan = make_plan(config, cluster)
    # Limits follow from it, and what cannot be served is refused here. Ingresses ask the stages.
    card = describe(config, description_folder(config))
    longest_s = card.max_new_tokens / card.frame_rate_hz
    limits = deployment_options(config, longest_s, cluster.get("CPU", 0.0))
    info = {
        "backend": "vllm",
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
    logger.info("configuration %s: %s", config.digest, config.model_dump_json())
    logger.info("limits where the config file states none: %s", limits)
    if card.embedded:
        logger.warning(
            "the embedded checkpoint has random weights: audio of the right format, not words;"
            " set TTS_MODEL to hear speech"
        )
    return bind(config, plan, limits, info)


def bind(
    config: AppConfig,
    plan: Plan,
    limits: Mapping[str, dict[str, Any]],
    info: dict[str, Any],
) -> Application:
    """Compose the deployments of one placement."""
    from serve_app.deployments.code_predictor import CodePredictor
    from serve_app.deployments.fused import Fused
    from serve_app.deployments.ingress import Ingress
    from serve_app.deployments.speech_decoder import SpeechDecoder
    from serve_app.deployments.talker import Talker
    from serve_app.load.gate import Limits

    # Any: the decorator's type says that a class becomes a function.
    def options(deployment: Any) -> serve.Deployment:
        name = deployment.name
        return deployment.options(ray_actor_options=plan.actor_options[name], **limits[name])

    devices, talker = plan.devices, None
    if config.placement == "fused":
        speech = options(Fused).bind(config, devices["Fused"])
    else:
        predictor = options(CodePredictor).bind(config, devices["CodePredictor"])
        talker = options(Talker).bind(config, devices["Talker"], predictor)
        speech = options(SpeechDecoder).bind(config, devices["SpeechDecoder"], talker)
    limits_of_stages = Limits(places_of(config), config.talker.max_queued, config.talker.max_wait_s)
    return options(Ingress).bind(speech, config.ingress, info, limits_of_stages, talker)


def make_plan(config: AppConfig, cluster: Mapping[str, float]) -> Plan:
    """Decide device and resources from the configuration and what `ray.cluster_resources()` says.

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
    if config.placement == "fused":
        # Rounded, or 0.5 + 0.2 + 0.3 would be more than the one GPU there is.
        cpus = {"Fused": round(sum(cpus.values()), 4)}
        gpu_shares = {"Fused": round(sum(gpu_shares.values()), 4)}
        devices = {"Fused": devices["Talker"]}
    cpus["Ingress"] = config.ingress.num_cpus
    cpus, scaled = _fit(cpus, cluster.get("CPU", math.inf))

    env: dict[str, Mapping[str, str]] = {"Ingress": _NO_GPU_ENV}
    for name, device in devices.items():
        env[name] = {**_CPU_ENV, **_NO_GPU_ENV} if device == "cpu" else {}
    options = {
        name: {
            "num_cpus": cpus[name],
            "num_gpus": gpu_shares.get(name, 0.0),
            "runtime_env": {"env_vars": dict(env[name])},
        }
        for name in cpus
    }
    return Plan(devices, reason + scaled, options)


def _device(wanted: Device, gpus: float) -> str:
    if wanted == "cuda" and not gpus:
        raise ValueError("device is 'cuda' but no node of the Ray cluster has a GPU")
    return ("cuda" if gpus else "cpu") if wanted == "auto" else wanted


def _fit(cpus: dict[str, float], available: float) -> tuple[dict[str, float], str]:
    """Scale the reservations down where one replica of everything would not fit.

    Ray's CPU numbers are bookkeeping: a machine with two cores runs all stages, only it must not be
    asked for more than it has, or a replica would wait for ever.
    """
    wanted = sum(cpus.values())
    if not available or wanted <= available * _SMALL_MACHINE_SHARE:
        return cpus, ""
    factor = available * _SMALL_MACHINE_SHARE / wanted
    scaled = {name: math.floor(cpu * factor * 100) / 100 for name, cpu in cpus.items()}
    return (
        scaled,
        f"; {wanted:g} CPUs reserved as {sum(scaled.values()):g}, the cluster has {available:g}",
    )
