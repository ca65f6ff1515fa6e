"""Check that a checkpoint is complete, hand out its tensors.

A folder in the layout of the Qwen3-TTS 12Hz releases: bf16 talker and code predictor in
model.safetensors (sharded or not), fp32 speech tokenizer in speech_tokenizer/model.safetensors.
Names and shapes follow from the configuration files alone, so a damaged or foreign checkpoint is
refused before a weight is read.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.spec import (
    CodePredictorSpec,
    ModelSpec,
    SpeechDecoderSpec,
    TalkerSpec,
    TransformerSpec,
)

Shapes = dict[str, tuple[int, ...]]

MODEL_WEIGHTS: Final = "model.safetensors"
SPEECH_WEIGHTS: Final = "speech_tokenizer/model.safetensors"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint folder; holds no weights, so it is cheap to copy and to pickle."""

    path: Path
    spec: ModelSpec
    model_files: Mapping[str, Path]
    speech_files: Mapping[str, Path]

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return talker and code predictor tensors under `prefix`, which is cut from their names.

        CPU tensors in the file's dtype, mapped from the file: clone or move them, never write to
        them.
        """
        return _load(self.model_files, prefix)

    def speech_tokenizer_tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Return the speech tokenizer's tensors under `prefix`, as `tensors` does."""
        return _load(self.speech_files, prefix)


def open_checkpoint(path: Path) -> Checkpoint:
    """Read the facts of a checkpoint and verify name and shape of every tensor that serving needs.

    Only headers are read. Tensors that serving does not need (encoders) may be absent or present.

    Raises:
        CheckpointError: names the file, and the tensor with its expected and found shape.
    """
    spec = ModelSpec.from_dir(path)
    model_files = _files(path, MODEL_WEIGHTS)
    speech_files = _files(path, SPEECH_WEIGHTS)
    model_shapes = talker_shapes(spec.talker) | code_predictor_shapes(spec.code_predictor)
    _verify(path / MODEL_WEIGHTS, model_files, model_shapes)
    _verify(path / SPEECH_WEIGHTS, speech_files, speech_decoder_shapes(spec.speech_decoder))
    return Checkpoint(path, spec, model_files, speech_files)


def talker_shapes(spec: TalkerSpec) -> Shapes:
    """Name and shape of each tensor of the talker."""
    hidden, text_hidden = spec.transformer.hidden_size, spec.text_hidden_size
    return {
        "talker.model.text_embedding.weight": (spec.text_vocab_size, text_hidden),
        "talker.model.codec_embedding.weight": (spec.vocab_size, hidden),
        "talker.text_projection.linear_fc1.weight": (text_hidden, text_hidden),
        "talker.text_projection.linear_fc1.bias": (text_hidden,),
        "talker.text_projection.linear_fc2.weight": (hidden, text_hidden),
        "talker.text_projection.linear_fc2.bias": (hidden,),
        "talker.codec_head.weight": (spec.vocab_size, hidden),
        **_transformer_shapes("talker.model", spec.transformer, qk_norm=True),
    }


def code_predictor_shapes(spec: CodePredictorSpec) -> Shapes:
    """Name and shape of each tensor of the code predictor; its tables are as wide as the talker."""
    hidden = spec.transformer.hidden_size
    shapes: Shapes = _transformer_shapes(
        "talker.code_predictor.model", spec.transformer, qk_norm=True
    )
    for i in range(spec.num_code_groups - 1):
        table = f"talker.code_predictor.model.codec_embedding.{i}.weight"
        shapes[table] = (spec.vocab_size, spec.talker_hidden_size)
        shapes[f"talker.code_predictor.lm_head.{i}.weight"] = (spec.vocab_size, hidden)
    if spec.has_projection:
        projection = "talker.code_predictor.small_to_mtp_projection"
        shapes[f"{projection}.weight"] = (hidden, spec.talker_hidden_size)
        shapes[f"{projection}.bias"] = (hidden,)
    return shapes


def speech_decoder_shapes(spec: SpeechDecoderSpec) -> Shapes:
    """Name and shape of each tensor of the speech decoder."""
    hidden, latent = spec.transformer.hidden_size, spec.latent_dim
    shapes: Shapes = {}
    for part, codebooks in (("rvq_first", 1), ("rvq_rest", spec.num_code_groups - 1)):
        quantizer = f"decoder.quantizer.{part}"
        shapes[f"{quantizer}.input_proj.weight"] = (spec.vq_dim, spec.codebook_dim, 1)
        shapes[f"{quantizer}.output_proj.weight"] = (spec.codebook_dim, spec.vq_dim, 1)
        for i in range(codebooks):
            codebook = f"{quantizer}.vq.layers.{i}._codebook"
            shapes[f"{codebook}.cluster_usage"] = (spec.codebook_size,)
            shapes[f"{codebook}.embedding_sum"] = (spec.codebook_size, spec.vq_dim)
    shapes |= _affine("decoder.pre_conv.conv", latent, spec.codebook_dim, 3)
    shapes |= _affine("decoder.pre_transformer.input_proj", hidden, latent)
    shapes |= _affine("decoder.pre_transformer.output_proj", latent, hidden)
    shapes |= _transformer_shapes("decoder.pre_transformer", spec.transformer, qk_norm=False)
    for i in range(spec.transformer.num_layers):
        for scale in ("self_attn_layer_scale", "mlp_layer_scale"):
            shapes[f"decoder.pre_transformer.layers.{i}.{scale}.scale"] = (hidden,)
    for i, ratio in enumerate(spec.upsampling_ratios):
        shapes |= _transposed(f"decoder.upsample.{i}.0.conv", latent, latent, ratio)
        block = f"decoder.upsample.{i}.1"
        shapes |= _affine(f"{block}.dwconv.conv", latent, 1, 7)
        shapes |= _affine(f"{block}.norm", latent)
        shapes |= _affine(f"{block}.pwconv1", 4 * latent, latent)
        shapes |= _affine(f"{block}.pwconv2", latent, 4 * latent)
        shapes[f"{block}.gamma"] = (latent,)
    return shapes | _vocoder_shapes(spec)


def _vocoder_shapes(spec: SpeechDecoderSpec) -> Shapes:
    channels = spec.decoder_dim
    shapes = _affine("decoder.decoder.0.conv", channels, spec.latent_dim, 7)
    for i, rate in enumerate(spec.upsample_rates, start=1):
        block = f"decoder.decoder.{i}.block"
        shapes |= _snake(f"{block}.0", channels)
        shapes |= _transposed(f"{block}.1.conv", channels, channels // 2, 2 * rate)
        channels //= 2
        for unit in (2, 3, 4):
            shapes |= _snake(f"{block}.{unit}.act1", channels)
            shapes |= _affine(f"{block}.{unit}.conv1.conv", channels, channels, 7)
            shapes |= _snake(f"{block}.{unit}.act2", channels)
            shapes |= _affine(f"{block}.{unit}.conv2.conv", channels, channels, 1)
    last = len(spec.upsample_rates) + 1
    shapes |= _snake(f"decoder.decoder.{last}", channels)
    return shapes | _affine(f"decoder.decoder.{last + 1}.conv", 1, channels, 7)


def _transformer_shapes(prefix: str, spec: TransformerSpec, *, qk_norm: bool) -> Shapes:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    query, key = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    shapes: Shapes = {f"{prefix}.norm.weight": (hidden,)}
    for i in range(spec.num_layers):
        layer = f"{prefix}.layers.{i}"
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.self_attn.q_proj.weight"] = (query, hidden)
        shapes[f"{layer}.self_attn.k_proj.weight"] = (key, hidden)
        shapes[f"{layer}.self_attn.v_proj.weight"] = (key, hidden)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, query)
        if qk_norm:
            shapes[f"{layer}.self_attn.q_norm.weight"] = (spec.head_dim,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (spec.head_dim,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
    return shapes


def _affine(prefix: str, out: int, *rest: int) -> Shapes:
    return {f"{prefix}.weight": (out, *rest), f"{prefix}.bias": (out,)}


def _transposed(prefix: str, channels_in: int, channels_out: int, kernel: int) -> Shapes:
    # ConvTranspose1d stores [in, out, kernel], the one weight whose first axis is not the output.
    return {
        f"{prefix}.weight": (channels_in, channels_out, kernel),
        f"{prefix}.bias": (channels_out,),
    }


def _snake(prefix: str, channels: int) -> Shapes:
    return {f"{prefix}.alpha": (channels,), f"{prefix}.beta": (channels,)}


def _files(path: Path, name: str) -> dict[str, Path]:
    """Map each tensor name to the file that holds it."""
    single = path / name
    index = path / f"{name}.index.json"
    if single.is_file() or not index.is_file():
        with _opened(single) as file:
            return dict.fromkeys(file.keys(), single)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {tensor: single.parent / shard for tensor, shard in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(str(index), f"is not a safetensors index: {error!r}") from error


def _verify(whole: Path, files: Mapping[str, Path], expected: Shapes) -> None:
    missing = [tensor for tensor in expected if tensor not in files]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        shape = list(expected[missing[0]])
        raise CheckpointError(str(whole), f"lacks tensor {missing[0]} of shape {shape}{others}")
    for shard, tensors in _by_file({tensor: files[tensor] for tensor in expected}):
        with _opened(shard) as file:
            present = set(file.keys())
            for tensor in tensors:
                if tensor not in present:
                    raise CheckpointError(
                        str(shard), f"lacks tensor {tensor}, which the index places here"
                    )
                found = tuple(file.get_slice(tensor).get_shape())
                if found != expected[tensor]:
                    wanted = list(expected[tensor])
                    reason = f"tensor {tensor}: expected shape {wanted}, found {list(found)}"
                    raise CheckpointError(str(shard), reason)


def _load(files: Mapping[str, Path], prefix: str) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = {}
    for shard, tensors in _by_file(
        {name: file for name, file in files.items() if name.startswith(prefix)}
    ):
        with _opened(shard) as file:
            for name in tensors:
                loaded[name.removeprefix(prefix)] = file.get_tensor(name)
    return loaded


def _by_file(files: Mapping[str, Path]) -> Iterator[tuple[Path, list[str]]]:
    for shard in sorted(set(files.values())):
        yield shard, [tensor for tensor, file in files.items() if file == shard]


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(str(file), framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(str(file), f"cannot be read as safetensors: {error}") from error
