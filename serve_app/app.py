"""The composition root: typed arguments in, Serve application out. The only place that binds
deployments.

split:  Ingress -> SpeechDecoder -> Talker -> CodePredictor
fused:  Ingress -> Fused
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import ray
from ray import serve
from ray.serve import Application

from serve_app.config import AppConfig
from serve_app.deployments.limits import deployment_options
from serve_app.errors import CheckpointError
from serve_app.types import ModelCard

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
    """Where everything runs and why; `actor_options` is complete for each deployment."""

    device: str
    reason: str
    actor_options: Mapping[str, dict[str, Any]]


def build(args: AppConfig) -> Application:
    """Build the application that configs/*.yaml describe.

    Raises:
        ValueError: the device asked for does not exist.
        CheckpointError: the checkpoint cannot be served.
    """
    config = args.resolved()
    cluster = ray.cluster_resources()
    plan = make_plan(config, cluster)
    card = describe(config)
    longest_s = card.max_new_tokens / card.frame_rate_hz
    limits = deployment_options(config, longest_s, cluster.get("CPU", 0.0))
    info = {
        "backend": "vllm",
        "placement": config.placement,
        "devices": {name: plan.device for name in plan.actor_options if name != "Ingress"},
        "device_reason": plan.reason,
        "profile": config.profile,
        "config_digest": config.digest,
    }
    logger.info(
        "serving %s from %s on %s (%s), placement %s, config %s",
        card.name,
        card.path,
        plan.device,
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
    return bind(config, plan, limits, (card,), info)


def bind(
    config: AppConfig,
    plan: Plan,
    limits: Mapping[str, dict[str, Any]],
    cards: tuple[ModelCard, ...],
    info: dict[str, Any],
) -> Application:
    """Compose the deployments of one placement."""
    from serve_app.deployments.code_predictor import CodePredictor
    from serve_app.deployments.fused import Fused
    from serve_app.deployments.ingress import Ingress
    from serve_app.deployments.speech_decoder import SpeechDecoder
    from serve_app.deployments.talker import Talker

    # Any: the decorator's type says that a class becomes a function.
    def options(deployment: Any) -> serve.Deployment:
        name = deployment.name
        return deployment.options(ray_actor_options=plan.actor_options[name], **limits[name])

    if config.placement == "fused":
        speech = options(Fused).bind(config, plan.device)
    else:
        predictor = options(CodePredictor).bind(config, plan.device)
        talker = options(Talker).bind(config, plan.device, predictor)
        speech = options(SpeechDecoder).bind(config, plan.device, talker)
    return options(Ingress).bind(speech, cards, config.ingress, info)


def make_plan(config: AppConfig, cluster: Mapping[str, float]) -> Plan:
    """Decide device and resources from the configuration and what `ray.cluster_resources()` says.

    Raises:
        ValueError: `device` is cuda, and no node has a GPU.
    """
    gpus = cluster.get("GPU", 0.0)
    if config.device == "cuda" and not gpus:
        raise ValueError("device is 'cuda' but no node of the Ray cluster has a GPU")
    if config.device == "auto":
        device = "cuda" if gpus else "cpu"
        reason = f"device 'auto', the Ray cluster has {gpus:g} GPUs"
    else:
        device, reason = config.device, f"device {config.device!r} configured"

    stages = {
        "Talker": config.talker,
        "CodePredictor": config.code_predictor,
        "SpeechDecoder": config.speech_decoder,
    }
    cpus: dict[str, float] = {name: stage.num_cpus for name, stage in stages.items()}
    gpu_shares: dict[str, float] = {
        name: stage.num_gpus if device == "cuda" else 0.0 for name, stage in stages.items()
    }
    if config.placement == "fused":
        # Rounded, or 0.5 + 0.2 + 0.3 would be more than the one GPU there is.
        cpus = {"Fused": round(sum(cpus.values()), 4)}
        gpu_shares = {"Fused": round(sum(gpu_shares.values()), 4)}
    cpus["Ingress"] = config.ingress.num_cpus
    cpus, scaled = _fit(cpus, cluster.get("CPU", math.inf))

    stage_env = {**_CPU_ENV, **_NO_GPU_ENV} if device == "cpu" else {}
    env = {**dict.fromkeys(gpu_shares, stage_env), "Ingress": _NO_GPU_ENV}
    options = {
        name: {
            "num_cpus": cpus[name],
            "num_gpus": gpu_shares.get(name, 0.0),
            "runtime_env": {"env_vars": dict(env[name])},
        }
        for name in cpus
    }
    return Plan(device, reason + scaled, options)


def describe(config: AppConfig) -> ModelCard:
    """Read what the HTTP layer may know of the checkpoint; fetches no weights."""
    from serve_app.models.checkpoint.locate import description_folder
    from serve_app.models.checkpoint.reading import read_spec
    from serve_app.models.checkpoint.text_tokenizer import control_strings

    folder = description_folder(config)
    embedded = config.model is None
    name = config.served_model_name or (
        folder.name if config.model is None else _name(config.model)
    )
    card = read_spec(folder).card(name, str(folder), embedded)
    if card.voice_sources == {"sample"}:
        raise CheckpointError(
            str(folder / "config.json"),
            "tts_model_type is 'base', a checkpoint for voice cloning, which is not served yet;"
            " name a CustomVoice or VoiceDesign checkpoint",
        )
    # A client is told at once what the talker's engine could not hold.
    longest = min(card.max_new_tokens, config.talker.max_model_len)
    return replace(card, max_new_tokens=longest, control_strings=control_strings(folder))


def _name(model: str) -> str:
    """A hub id stays as it is; of a folder only its own name is anybody's business."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model


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
