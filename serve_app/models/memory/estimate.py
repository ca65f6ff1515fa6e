"""How much of a GPU's memory the stages take, at their peak.

Weights, KV pool and arena follow from checkpoint and settings. The rest, what CUDA, vLLM, cuDNN and
captured graphs take, is arithmetic with constants that were fitted to measured servers
(docs/performance.md, "Start and memory"); tests/gpu/test_memory.py compares it with a device.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from serve_app.config import AppConfig, StageConfig
from serve_app.models.checkpoint.encoder_shapes import speaker_encoder_shapes, speech_encoder_shapes
from serve_app.models.checkpoint.shapes import (
    Shapes,
    code_predictor_shapes,
    speech_decoder_shapes,
    talker_shapes,
)
from serve_app.models.checkpoint.spec import ModelSpec, SpeechDecoderSpec, VoiceEncoderSpec
from serve_app.models.memory.decoder_steps import largest_step
from serve_app.models.memory.pool import kv_cache_bytes

MIB: Final = 1 << 20
STAGES: Final = ("talker", "code_predictor", "speech_decoder")
# Beside them, where the checkpoint clones voices.
VOICE_ENCODER: Final = "voice_encoder"
# Context, modules and libraries of each process that uses the GPU.
_PROCESS: Final = 650 * MIB
# Workspaces of vLLM and of a prefill, the larger part as wide as the model; graphs by streams.
_TALKER: Final = 850 * MIB
_PER_HIDDEN: Final = int(0.4 * MIB)
_PER_STREAM: Final = int(2.9 * MIB)
_PREDICTOR: Final = 150 * MIB
# Graphs, by the frames of all streams in the largest step. Where cuDNN is not told to try its
# algorithms, large graphs follow while others are served, and each is called before its capture, on
# a stream and so in memory of its own; and of steps beyond so many frames those that it guesses
# take workspaces, none before (measured: steps of 192, 384 and 512 frames).
_DECODER: Final = 300 * MIB
_PER_FRAME: Final = MIB
_PER_FRAME_CALLED: Final = int(1.35 * MIB)
_GUESSED_WELL: Final = 192
_WORKSPACE_PER_FRAME: Final = int(4.3 * MIB)
# Of a recording, tensors as long and as wide as the widest layer that are there at once (peak of
# full-size encoders on a CPU, 30 s: 3.6), and the rest up to what an H200 told: 1,898 MiB for the
# process of 0.6b after recordings of 30 s.
_LONG_TENSORS: Final = 4
_ENCODER: Final = 320 * MIB
# With the histories of convolutions, beside the attention's: a tenth of it.
_HISTORIES: Final = 1.11


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes by what takes them; `fixed` names the parts that no workspace could make smaller."""

    parts: Mapping[str, int]
    fixed: tuple[str, ...] = ("weights", "KV pool", "slots")

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def least(self) -> int:
        """What is certain: weights, KV pool and slots."""
        return sum(self.parts[name] for name in self.fixed)

    def text(self) -> str:
        named = ", ".join(f"{name} {gib(size)}" for name, size in self.parts.items() if size)
        return f"{gib(self.total)} GiB ({named})"


def gib(size: float) -> str:
    return f"{size / 2**30:.1f}"


def estimate(config: AppConfig, spec: ModelSpec, stages: Sequence[str] = STAGES) -> Estimate:
    """One replica of each of `stages` on one GPU; of the voice encoder, which a recording starts,
    all that there may be.
    """
    talker, decoder = config.talker, config.speech_decoder
    parts: dict[str, int] = dict.fromkeys(
        ("weights", "KV pool", "slots", "workspaces", "processes"), 0
    )
    if "talker" in stages:
        shape, itemsize = spec.talker.transformer, _itemsize(talker)
        parts["weights"] += _weights(talker_shapes(spec.talker), talker)
        parts["KV pool"] = kv_cache_bytes(talker, shape, itemsize)
        parts["workspaces"] += _TALKER + _PER_HIDDEN * shape.hidden_size
        parts["workspaces"] += _PER_STREAM * talker.max_num_seqs
    if "code_predictor" in stages:
        shapes = code_predictor_shapes(spec.code_predictor)
        parts["weights"] += _weights(shapes, config.code_predictor)
        parts["workspaces"] += _PREDICTOR
    if "speech_decoder" in stages:
        parts["weights"] += _weights(speech_decoder_shapes(spec.speech_decoder), decoder)
        itemsize = _itemsize(decoder)
        parts["slots"] = (decoder.max_streams + 1) * _row_bytes(spec.speech_decoder, itemsize)
        frames = largest_step(spec.speech_decoder, itemsize, decoder)
        per_frame = _PER_FRAME
        if not decoder.cudnn_benchmark:
            per_frame += _PER_FRAME_CALLED
            per_frame += _WORKSPACE_PER_FRAME if frames > _GUESSED_WELL else 0
        parts["workspaces"] += _DECODER + frames * per_frame
    own = len(set(stages) - {VOICE_ENCODER})
    parts["processes"] = _PROCESS * (1 if config.placement == "fused" and own else own)
    if VOICE_ENCODER in stages and spec.voice_encoder is not None:
        longest_s = config.ingress.voices.max_s
        each = _PROCESS + _encoder_bytes(spec.voice_encoder, longest_s)
        parts["voice encoder"] = config.voice_encoder.max_replicas * each
    return Estimate(parts)


def _encoder_bytes(spec: VoiceEncoderSpec, longest_s: float) -> int:
    """Weights in float32, and the longest recording on its way through them."""
    shapes = speech_encoder_shapes(spec.speech.mimi) | speaker_encoder_shapes(spec.speaker)
    weights = 4 * sum(math.prod(shape) for shape in shapes.values())
    samples = longest_s * spec.speech.sample_rate_hz
    wide = int(4 * spec.speech.mimi["num_filters"] * samples)
    return weights + _LONG_TENSORS * wide + _ENCODER


def _weights(shapes: Shapes, stage: StageConfig) -> int:
    return sum(math.prod(shape) for shape in shapes.values()) * _itemsize(stage)


def _row_bytes(spec: SpeechDecoderSpec, itemsize: int) -> int:
    """The state of one stream."""
    shape = spec.transformer
    window = spec.sliding_window * shape.num_kv_heads * shape.head_dim
    return math.ceil(2 * shape.num_layers * window * itemsize * _HISTORIES)


def _itemsize(stage: StageConfig) -> int:
    """Bytes of a value, on a GPU."""
    return 4 if stage.dtype == "float32" else 2
