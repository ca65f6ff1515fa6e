"""Name and shape of each tensor of the encoders that a recording becomes a voice by."""

from collections.abc import Mapping
from typing import Any

from serve_app.models.checkpoint.shapes import Shapes
from serve_app.models.checkpoint.spec import SpeakerEncoderSpec


def speech_encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Name and shape of each tensor of the speech tokenizer's encoder half, which all have.

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


def speaker_encoder_shapes(spec: SpeakerEncoderSpec) -> Shapes:
    """Name and shape of each tensor of the speaker encoder, which only Base has."""
    shapes: Shapes = {}

    def conv(name: str, out: int, inputs: int, kernel: int) -> None:
        shapes[f"speaker_encoder.{name}.weight"] = (out, inputs, kernel)
        shapes[f"speaker_encoder.{name}.bias"] = (out,)

    channels, kernels = spec.channels, spec.kernel_sizes
    conv("blocks.0.conv", channels[0], spec.num_mel_bands, kernels[0])
    for i in range(1, len(channels) - 1):
        conv(f"blocks.{i}.tdnn1.conv", channels[i], channels[i - 1], 1)
        for part in range(spec.res2net_scale - 1):
            width = channels[i] // spec.res2net_scale
            conv(f"blocks.{i}.res2net_block.blocks.{part}.conv", width, width, kernels[i])
        conv(f"blocks.{i}.tdnn2.conv", channels[i], channels[i], 1)
        conv(f"blocks.{i}.se_block.conv1", spec.squeezed_channels, channels[i], 1)
        conv(f"blocks.{i}.se_block.conv2", channels[i], spec.squeezed_channels, 1)
    last = channels[-1]
    conv("mfa.conv", last, last, kernels[-1])
    conv("asp.tdnn.conv", spec.attention_channels, 3 * last, 1)
    conv("asp.conv", last, spec.attention_channels, 1)
    conv("fc", spec.output_size, 2 * last, 1)
    return shapes
