"""Random weights: how each tensor of a checkpoint is drawn."""

import math
import zlib
from typing import Final, Literal

import torch

from serve_app.models.checkpoint.shapes import Shapes
from serve_app.models.random_checkpoint.configuration import CODEC_EOS_ID

Eos = Literal["natural", "unreachable"]

# With EOS logits this much larger, runs end after some twenty frames in the mean; a random model
# keeps no count of them.
_EOS_GAIN: Final = 2.6


class RandomWeights:
    """Random tensors that depend on (seed, name, shape) only, not on the order of drawing."""

    def __init__(self, seed: int, eos: Eos, device: str) -> None:
        self._seed = seed
        self._eos = eos
        self._device = torch.device(device)

    def tensors(self, shapes: Shapes, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Draw the named tensors in float32 on the device; return them in `dtype` on the CPU."""
        return {name: self._draw(name, shape).to(dtype).cpu() for name, shape in shapes.items()}

    def _draw(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        generator = torch.Generator(self._device)
        # 32 bits: the CPU's generator ignores the others.
        generator.manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))

        def normal(std: float) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self._device).mul_(std)

        def uniform(low: float, high: float) -> torch.Tensor:
            drawn = torch.rand(shape, generator=generator, device=self._device)
            return drawn.mul_(high - low).add_(low)

        kind = name.rsplit(".", 1)[-1]
        if kind == "initialized":
            return torch.ones(shape, device=self._device)
        if kind == "cluster_usage":
            return uniform(0.5, 3.5)  # away from 1, or a forgotten division would go unnoticed
        if kind in ("scale", "gamma"):
            return uniform(0.1, 0.5)  # at their usual start (0.01, 1e-6) they would hide errors
        if kind in ("embedding_sum", "embed_sum"):
            return normal(0.6)
        if kind in ("alpha", "beta"):
            return normal(0.2)
        if kind == "bias":
            return normal(0.02)
        if len(shape) == 1:
            return normal(0.1).add_(1.0)
        if name.endswith(("text_embedding.weight", "talker.model.codec_embedding.weight")):
            return normal(1.0)
        if ".codec_embedding." in name:
            return normal(0.35)
        if name.endswith("codec_head.weight"):
            head = normal(3 / math.sqrt(shape[-1]))
            head[CODEC_EOS_ID] *= _EOS_GAIN if self._eos == "natural" else 0.0
            return head
        if ".lm_head." in name:
            return normal(3 / math.sqrt(shape[-1]))
        return normal(_gain(name) / math.sqrt(_fan_in(name, shape)))


def _gain(name: str) -> float:
    if name.startswith("decoder.decoder."):
        if ".conv1." in name or ".conv2." in name:
            return 0.5  # twelve residual units in a row
        if name.startswith("decoder.decoder.6."):
            return 0.15  # keeps most samples inside the clamp
    return 1.0


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    if name.startswith("decoder.upsample.") and ".0.conv." in name:
        return shape[0]  # transposed, kernel = stride: one input column per output sample
    if name.startswith("decoder.decoder.") and ".block.1.conv." in name:
        return 2 * shape[0]  # transposed, kernel = twice the stride
    return math.prod(shape[1:])
