"""Random weights: what tensors a checkpoint has besides the model's own, and how each is drawn."""

import math
import zlib
from collections.abc import Mapping
from typing import Any, Final, Literal

import torch

from serve_app.models.checkpoint.shapes import Shapes
from serve_app.models.random_checkpoint.configuration import CODEC_EOS_ID

Eos = Literal["natural", "unreachable"]

# With EOS logits this much larger, runs end after some twenty frames in the mean; a random model
# keeps no count of them.
_EOS_GAIN: Final = 2.6
# Released values of what a checkpoint's configuration leaves out.
_SPEAKER_ENCODER: Final = {
    "mel_dim": 128, "enc_channels": [512, 512, 512, 512, 1536], "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 128, "enc_res2net_scale": 8,
    "enc_se_channels": 128,
}  # fmt: skip


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


def encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Name and shape of each tensor of the speech tokenizer's Mimi encoder.

    Args:
        config: `encoder_config`, complete.
    """
    filters, compress = config["num_filters"], config["compress"]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {}

    def conv(name: str, out: int, inputs: int, kernel: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (out, inputs, kernel)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    conv("encoder.encoder.layers.0.conv", filters, config["audio_channels"], config["kernel_size"])
    layer, channels = 1, filters
    for stride in reversed(config["upsampling_ratios"]):
        block = f"encoder.encoder.layers.{layer}.block"
        conv(f"{block}.1.conv", channels // compress, channels, config["residual_kernel_size"])
        conv(f"{block}.3.conv", channels, channels // compress, 1)
        conv(f"encoder.encoder.layers.{layer + 2}.conv", 2 * channels, channels, 2 * stride)
        layer, channels = layer + 3, 2 * channels
    conv(f"encoder.encoder.layers.{layer + 1}.conv", hidden, channels, config["last_kernel_size"])
    for i in range(config["num_hidden_layers"]):
        prefix = f"encoder.encoder_transformer.layers.{i}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{norm}.weight"] = shapes[f"{prefix}.{norm}.bias"] = (hidden,)
        query = config["num_attention_heads"] * config["head_dim"]
        key = config["num_key_value_heads"] * config["head_dim"]
        shapes[f"{prefix}.self_attn.q_proj.weight"] = (query, hidden)
        shapes[f"{prefix}.self_attn.k_proj.weight"] = (key, hidden)
        shapes[f"{prefix}.self_attn.v_proj.weight"] = (key, hidden)
        shapes[f"{prefix}.self_attn.o_proj.weight"] = (hidden, query)
        shapes[f"{prefix}.mlp.fc1.weight"] = (inner, hidden)
        shapes[f"{prefix}.mlp.fc2.weight"] = (hidden, inner)
        shapes[f"{prefix}.self_attn_layer_scale.scale"] = (hidden,)
        shapes[f"{prefix}.mlp_layer_scale.scale"] = (hidden,)
    conv("encoder.downsample.conv", hidden, hidden, 4, bias=False)
    width = config["vector_quantization_hidden_dimension"]
    semantic = config["num_semantic_quantizers"]
    acoustic = config["num_quantizers"] - semantic
    for part, codebooks in (("semantic", semantic), ("acoustic", acoustic)):
        quantizer = f"encoder.quantizer.{part}_residual_vector_quantizer"
        conv(f"{quantizer}.input_proj", width, hidden, 1, bias=False)
        conv(f"{quantizer}.output_proj", hidden, width, 1, bias=False)
        for i in range(codebooks):
            codebook = f"{quantizer}.layers.{i}.codebook"
            shapes[f"{codebook}.cluster_usage"] = (config["codebook_size"],)
            shapes[f"{codebook}.embed_sum"] = (config["codebook_size"], config["codebook_dim"])
            shapes[f"{codebook}.initialized"] = (1,)
    return shapes


def speaker_encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Name and shape of each tensor of the speaker encoder (ECAPA-TDNN), which only Base has.

    Args:
        config: `speaker_encoder_config`, which may leave out released values.
    """
    config = _SPEAKER_ENCODER | dict(config)
    shapes: Shapes = {}

    def conv(name: str, out: int, inputs: int, kernel: int) -> None:
        shapes[f"speaker_encoder.{name}.weight"] = (out, inputs, kernel)
        shapes[f"speaker_encoder.{name}.bias"] = (out,)

    channels, kernels = config["enc_channels"], config["enc_kernel_sizes"]
    scale, squeezed = config["enc_res2net_scale"], config["enc_se_channels"]
    conv("blocks.0.conv", channels[0], config["mel_dim"], kernels[0])
    for i in range(1, len(channels) - 1):
        conv(f"blocks.{i}.tdnn1.conv", channels[i], channels[i - 1], 1)
        for part in range(scale - 1):
            width = channels[i] // scale
            conv(f"blocks.{i}.res2net_block.blocks.{part}.conv", width, width, kernels[i])
        conv(f"blocks.{i}.tdnn2.conv", channels[i], channels[i], 1)
        conv(f"blocks.{i}.se_block.conv1", squeezed, channels[i], 1)
        conv(f"blocks.{i}.se_block.conv2", channels[i], squeezed, 1)
    last = channels[-1]
    conv("mfa.conv", last, last, kernels[-1])
    conv("asp.tdnn.conv", config["enc_attention_channels"], 3 * last, 1)
    conv("asp.conv", last, config["enc_attention_channels"], 1)
    conv("fc", config["enc_dim"], 2 * last, 1)
    return shapes
