"""Settings by the memory that a GPU has: `profile: auto`, and what cannot fit any."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from serve_app.config import AppConfig, StageConfig, VoiceEncoderConfig
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.memory.estimate import (
    MIB,
    STAGES,
    VOICE_ENCODER,
    Estimate,
    estimate,
    gib,
)
from serve_app.models.memory.pool import TYPICAL_POSITIONS, position_bytes

# Of the memory, what stays free: fragments, a display, what the estimate does not know.
_FREE_SHARE: Final = 0.06
_FREE: Final = 300 * MIB
# Streams of a replica and positions of the longest request, from the largest card to the smallest.
_SIZES: Final = (
    *((256, 16384), (128, 16384), (64, 16384), (32, 16384), (16, 16384), (8, 16384)),
    *((8, 8192), (4, 8192), (4, 4096), (2, 4096)),
)
_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Steps of the decoder with more streams than this gain nothing.
_DECODER_BATCH: Final = 64
_FIRST_BATCH: Final = 8
# What memory is left goes into a pool of up to so many typical requests per stream.
_POOL_GROWTH: Final = 2
_EPSILON: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Group:
    """Stages that share a GPU, and the part of its memory that is theirs."""

    stages: tuple[str, ...]
    share: float


def groups(config: AppConfig, spec: ModelSpec) -> list[Group]:
    """All stages on one GPU where their shares add up to one at most, else each on its own.

    A voice encoder without a share of its own is beside whatever the first GPU of its node has.
    """
    shares = {name: getattr(config, name).num_gpus for name in STAGES}
    total = sum(shares.values())
    encoder = config.voice_encoder
    is_guest = not encoder.num_gpus and (encoder.device or config.device) != "cpu"
    beside = (VOICE_ENCODER,) if is_guest and spec.voice_encoder is not None else ()
    if config.placement == "fused" or total <= 1 + _EPSILON:
        return [Group((*STAGES, *beside), min(1.0, total) or 1.0)]
    return [Group((name, *beside), min(1.0, share) or 1.0) for name, share in shares.items()]


def fitted(config: AppConfig, spec: ModelSpec, memory: int) -> AppConfig:
    """The settings that serve most streams with `memory` bytes on each GPU.

    What `config` states stays as stated.

    Raises:
        ValueError: not even the smallest fit.
    """
    last = config
    for settings in _candidates():
        last = _overlaid(config, settings)
        if all(_fits(last, spec, group, memory) for group in groups(last, spec)):
            return _with_pool(last, spec, memory)
    raise ValueError(
        f"{_what(last, spec)} need more than a GPU with {gib(memory)} GiB has:"
        f" {_needed(last, spec)}. Choose a smaller checkpoint or a larger GPU;"
        " talker.max_model_len and talker.kv_cache_bytes may be stated smaller"
    )


def check(config: AppConfig, spec: ModelSpec, memory: int) -> str | None:
    """What to warn of: settings that may not fit `memory` bytes on each GPU.

    Raises:
        ValueError: they certainly do not.
    """
    for group in groups(config, spec):
        needed = estimate(config, spec, group.stages)
        there = int(group.share * memory)
        said = (
            f"{_what(config, spec)} need about {needed.text()} of a GPU with"
            f" {gib(there)} GiB for them; `profile: auto` takes settings that fit"
        )
        if needed.least > there:
            raise ValueError(said)
        if needed.total > there:
            return said
    return None


def _candidates() -> Iterator[Mapping[str, Mapping[str, Any]]]:
    for streams, positions in _SIZES:
        batches = tuple(size for size in _BATCHES if size <= streams)
        decoder = tuple(size for size in batches if size <= _DECODER_BATCH)
        yield {
            "talker": {"max_num_seqs": streams, "max_model_len": positions},
            "code_predictor": {"batch_sizes": batches},
            "speech_decoder": {
                "max_streams": 2 * streams,
                "batch_sizes": decoder,
                "first_batch_sizes": tuple(s for s in batches if s <= _FIRST_BATCH),
            },
            # Two at once where there is plenty of room.
            "voice_encoder": {"max_replicas": 2 if streams > _DECODER_BATCH else 1},
        }


def _overlaid(config: AppConfig, settings: Mapping[str, Mapping[str, Any]]) -> AppConfig:
    """`config` with these settings where it states none."""
    changed: dict[str, StageConfig | VoiceEncoderConfig] = {}
    for name, values in settings.items():
        stage: StageConfig | VoiceEncoderConfig = getattr(config, name)
        free = {key: v for key, v in values.items() if key not in stage.model_fields_set}
        changed[name] = stage.model_copy(update=free)
    return config.model_copy(update=changed)


def _fits(config: AppConfig, spec: ModelSpec, group: Group, memory: int) -> bool:
    return estimate(config, spec, group.stages).total <= _room(group, memory)


def _room(group: Group, memory: int) -> int:
    return int(group.share * (memory * (1 - _FREE_SHARE) - _FREE))


def _with_pool(config: AppConfig, spec: ModelSpec, memory: int) -> AppConfig:
    """Give the KV pool of what memory is left, up to twice the usual."""
    talker = config.talker
    if talker.kv_cache_bytes is not None:
        return config
    group = next(group for group in groups(config, spec) if "talker" in group.stages)
    now = estimate(config, spec, group.stages)
    left = _room(group, memory) - now.total
    itemsize = 4 if talker.dtype == "float32" else 2
    typical = min(talker.max_model_len, TYPICAL_POSITIONS) * talker.max_num_seqs
    most = _POOL_GROWTH * typical * position_bytes(spec.talker.transformer, itemsize)
    # Half of it: the estimate is one.
    pool = min(max(most, now.parts["KV pool"]), now.parts["KV pool"] + left // 2)
    grown = talker.model_copy(update={"kv_cache_bytes": pool})
    return config.model_copy(update={"talker": grown})


def _what(config: AppConfig, spec: ModelSpec) -> str:
    streams = config.talker.max_num_seqs
    return f"the stages of a checkpoint of size {spec.size} with {streams} streams"


def _needed(config: AppConfig, spec: ModelSpec) -> str:
    found: list[Estimate] = [estimate(config, spec, g.stages) for g in groups(config, spec)]
    return max(found, key=lambda needed: needed.total).text()
