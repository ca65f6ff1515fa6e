"""The least work that a frame needs, from a checkpoint's facts, and the least time for it.

Weights are bfloat16 and are read once per step, except those of the code predictor, which are read
once per pass: they do not stay in a GPU's cache from one pass to the next. Activations, embedding
rows and the short histories of convolutions may stay on the chip and are left out. So no
implementation that computes the same in bfloat16 is faster than these floors.
"""

from dataclasses import dataclass
from typing import Final

from serve_app.models.checkpoint.spec import (
    CodePredictorSpec,
    SpeechDecoderSpec,
    TalkerSpec,
    TransformerSpec,
)

_BYTES: Final = 2  # bfloat16, and 16-bit samples
_FLOPS: Final = 2  # a multiplication and an addition per weight
# Of the decoder; no configuration file carries them (see network/blocks.py).
_PRE_KERNEL: Final = 3
_KERNEL: Final = 7
_UNITS: Final = 3
_CONVNEXT_FACTOR: Final = 4


@dataclass(frozen=True, slots=True)
class Device:
    """What can be had of a GPU: bytes per second, bfloat16 floating-point operations per second."""

    bytes_per_s: float
    flops_per_s: float


H200: Final = Device(bytes_per_s=4.3e12, flops_per_s=790e12)


@dataclass(frozen=True, slots=True)
class Work:
    """Bytes that must move between memory and chip, and operations that must be done."""

    num_bytes: float
    num_flops: float

    def __add__(self, other: "Work") -> "Work":
        return Work(self.num_bytes + other.num_bytes, self.num_flops + other.num_flops)

    def __mul__(self, factor: float) -> "Work":
        return Work(factor * self.num_bytes, factor * self.num_flops)

    def bytes_ms(self, device: Device) -> float:
        return 1000 * self.num_bytes / device.bytes_per_s

    def flops_ms(self, device: Device) -> float:
        return 1000 * self.num_flops / device.flops_per_s

    def ms(self, device: Device) -> float:
        """The larger of both, as if they overlapped perfectly."""
        return max(self.bytes_ms(device), self.flops_ms(device))

    def is_compute_bound(self, device: Device) -> bool:
        return self.flops_ms(device) > self.bytes_ms(device)


def _layer_weights(shape: TransformerSpec) -> int:
    """Matrices of one layer, in values: q, k, v, output, gate, up, down."""
    heads = (2 * shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    return shape.hidden_size * (heads + 3 * shape.intermediate_size)


def _stack_weights(shape: TransformerSpec) -> int:
    """All weights of a stack with its last norm, in values."""
    norms = 2 * shape.hidden_size + 2 * shape.head_dim
    return shape.num_layers * (_layer_weights(shape) + norms) + shape.hidden_size


def kv_bytes_per_position(shape: TransformerSpec) -> int:
    return _BYTES * 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim


def _attention_flops(shape: TransformerSpec, positions: float) -> float:
    """Scores and weighted values of one new position over `positions`."""
    return 2 * _FLOPS * positions * shape.num_layers * shape.num_heads * shape.head_dim


def talker_step(spec: TalkerSpec, streams: int, context: float) -> Work:
    """One decode step: weights and head once, each stream's keys and values of `context`."""
    shape = spec.transformer
    head = shape.hidden_size * spec.vocab_size
    weights = _stack_weights(shape) + head
    matrices = shape.num_layers * _layer_weights(shape) + head
    return Work(
        _BYTES * weights + streams * context * kv_bytes_per_position(shape),
        streams * (_FLOPS * matrices + _attention_flops(shape, context)),
    )


def predictor_frame(spec: CodePredictorSpec, streams: int) -> Work:
    """Q - 1 passes over the layers and one head each; the first has two rows per stream.

    The projection counts once: of a code's embedding it is a table made beforehand.
    """
    shape, passes = spec.transformer, spec.num_code_groups - 1
    head = shape.hidden_size * spec.vocab_size
    projection = 0
    if spec.has_projection:
        projection = (spec.talker_hidden_size + 1) * shape.hidden_size
    rows = shape.num_layers * _layer_weights(shape) * (passes + 1)
    return Work(
        _BYTES * (passes * (_stack_weights(shape) + head) + projection),
        _FLOPS * streams * (rows + passes * head + projection),
    )


def decoder_chunk(spec: SpeechDecoderSpec, streams: int, frames: int) -> Work:
    """One decoder step of `frames` frames for each of `streams` streams.

    Bytes: weights once, the attention window of every stream, its new rows, and the samples.
    """
    weights, products = _decoder_products(spec)
    shape = spec.transformer
    seen = spec.sliding_window
    rows = streams * frames
    written = min(frames, seen)
    return Work(
        _BYTES * weights
        + streams * (seen + written) * kv_bytes_per_position(shape)
        + rows * spec.samples_per_frame * _BYTES,
        rows * (_FLOPS * products + _attention_flops(shape, seen)),
    )


def _decoder_products(spec: SpeechDecoderSpec) -> tuple[int, int]:
    """Weights of the decoder's matrices and convolutions, and multiplications per frame."""
    latent, shape = spec.latent_dim, spec.transformer
    rows = 1
    parts = [  # (weights, rows per frame that they are applied to)
        (_PRE_KERNEL * spec.codebook_dim * latent, rows),
        (2 * latent * shape.hidden_size + shape.num_layers * _layer_weights(shape), rows),
    ]
    for ratio in spec.upsampling_ratios:
        parts.append((ratio * latent * latent, rows))
        rows *= ratio
        parts.append((_KERNEL * latent + 2 * _CONVNEXT_FACTOR * latent * latent, rows))
    parts.append((_KERNEL * latent * spec.decoder_dim, rows))
    width = spec.decoder_dim
    for rate in spec.upsample_rates:
        # A transposed convolution of kernel 2r and stride r to half the width.
        parts.append((width * (width // 2) * 2 * rate, rows))
        rows, width = rows * rate, width // 2
        parts.append((_UNITS * (_KERNEL + 1) * width * width, rows))
    parts.append((_KERNEL * width, rows))
    return sum(weights for weights, _ in parts), sum(weights * rows for weights, rows in parts)
