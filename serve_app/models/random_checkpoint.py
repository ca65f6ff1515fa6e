"""Write checkpoints with random weights in the released on-disk format, offline.

A tiny one speaks noise in milliseconds on a CPU: the embedded default, and what every test runs
on. A full-size one has the shapes, dtypes and speed of a release. Both load in the reference
package. Weights are drawn per tensor from (seed, name), scaled so that activations keep unit size
and every term of the model matters to the output.
"""

import argparse
import json
import math
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args

import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, trainers

from serve_app.models.checkpoint import (
    MODEL_WEIGHTS,
    SPEECH_WEIGHTS,
    Shapes,
    code_predictor_shapes,
    speech_decoder_shapes,
    talker_shapes,
)
from serve_app.models.spec import CONFIG, GENERATION_CONFIG, SPEECH_CONFIG, ModelSpec
from serve_app.models.text_tokenizer import qwen2_pipeline
from serve_app.types import TaskType

Size = Literal["tiny", "tiny-0b6", "0.6b", "1.7b"]
Eos = Literal["natural", "unreachable"]

_TRAINED_TOKENS: Final = 512
_RELEASED_ASSISTANT_ID: Final = 77091
_RELEASED_FIRST_ADDED_ID: Final = 151643
_RELEASED_TEXT_VOCAB: Final = 151936

# Released order; the ids are consecutive. Tokens of text mode (special: false) are those from
# tool_call to /think.
_ADDED_TOKENS: Final = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
    "<|audio_start|>", "<|audio_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>",
    "<tts_text_bos_single>", "<|audio_pad|>",
)  # fmt: skip
_NOT_SPECIAL: Final = frozenset(_ADDED_TOKENS[14:26])

_TRAINING_TEXT: Final = (
    "The quick brown fox jumps over the lazy dog, and then it speaks clearly.",
    "Speech is made of short frames; each frame lasts eighty milliseconds.",
    "你好，世界。今天的天气很好，我们一起去公园散步吧。",
    "Guten Morgen! Die Stimme klingt heute besonders freundlich und klar.",
    "Buongiorno a tutti, la voce parla lentamente e con grande chiarezza.",
    "Bom dia! A voz fala devagar, com muita clareza e um pouco de humor.",
    "Buenos días, la voz habla despacio y con mucha claridad.",
    "こんにちは、世界。今日はとても良い天気ですね。",
    "안녕하세요, 세계. 오늘은 날씨가 아주 좋습니다.",
    "Bonjour à tous, la voix parle lentement et très clairement.",
    "Доброе утро! Голос звучит сегодня особенно ясно.",
)

_LANGUAGES: Final = { "chinese": 2055, "english": 2050, "german": 2053, "italian": 2070,
    "portuguese": 2071, "spanish": 2054, "japanese": 2058, "korean": 2064, "french": 2061,
    "russian": 2069,
}  # fmt: skip
_DIALECTS: Final = {"beijing_dialect": 2074, "sichuan_dialect": 2062}
_SPEAKERS: Final = {
    "serena": 3066, "vivian": 3065, "uncle_fu": 3010, "ryan": 3061, "aiden": 2861, "ono_anna": 2873,
    "sohee": 2864, "eric": 2875, "dylan": 2878,
}  # fmt: skip
_SPEAKER_DIALECTS: Final = {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}
_CODEC_EOS_ID: Final = 2150
# Runs then end after some twenty frames in the mean; a random model keeps no count of them.
_EOS_GAIN: Final = 2.6

# What the sizes differ in; everything else of the configuration files is shared.
_TALKER: Final[Mapping[Size, dict[str, Any]]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128},
    "tiny-0b6": {"hidden_size": 32, "intermediate_size": 96},
    "0.6b": {"hidden_size": 1024, "intermediate_size": 3072},
    "1.7b": {"hidden_size": 2048, "intermediate_size": 6144},
}
_SMALL_TALKER: Final = {
    "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "text_hidden_size": 48, "mrope_section": [6, 5, 5],
}  # fmt: skip
_FULL_TALKER: Final = {
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128,
    "text_hidden_size": 2048, "mrope_section": [24, 20, 20],
}  # fmt: skip
_SMALL_PREDICTOR: Final = {
    "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
_FULL_PREDICTOR: Final = {
    "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 5, "num_attention_heads":
    16, "num_key_value_heads": 8, "head_dim": 128,
}  # fmt: skip
# A window of 24 makes two layers see further than the 25 frames of context that the reference's
# chunks keep.
_SMALL_DECODER: Final = {
    "latent_dim": 48, "codebook_dim": 32, "decoder_dim": 64, "hidden_size": 32, "intermediate_size":
    64, "head_dim": 16, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2,
    "sliding_window": 24, "vector_quantization_hidden_dimension": 32,
}  # fmt: skip
_FULL_DECODER: Final = {
    "latent_dim": 1024, "codebook_dim": 512, "decoder_dim": 1536, "hidden_size": 512,
    "intermediate_size": 1024, "head_dim": 64, "num_attention_heads": 16, "num_key_value_heads": 16,
    "num_hidden_layers": 8, "sliding_window": 72, "vector_quantization_hidden_dimension": 512,
}  # fmt: skip
_SMALL_ENCODER: Final = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "head_dim": 16, "intermediate_size": 64, "num_filters": 4, "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16, "upsample_groups": 32,
}  # fmt: skip
_FULL_ENCODER: Final = {
    "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
    "head_dim": 64, "intermediate_size": 2048, "num_filters": 64, "codebook_dim": 256,
    "vector_quantization_hidden_dimension": 256, "upsample_groups": 512,
}  # fmt: skip
_SPEAKER_ENCODER: Final = {
    "mel_dim": 128, "enc_channels": [512, 512, 512, 512, 1536], "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 128, "enc_res2net_scale": 8,
    "enc_se_channels": 128,
}  # fmt: skip
_SMALL_SPEAKER_ENCODER: Final = {
    "enc_channels": [32, 32, 32, 32, 96], "enc_attention_channels": 16, "enc_res2net_scale": 4,
    "enc_se_channels": 16,
}  # fmt: skip


def write_checkpoint(
    path: Path,
    *,
    size: Size,
    variant: TaskType,
    seed: int = 0,
    eos: Eos = "natural",
    device: str = "cpu",
) -> None:
    """Write a checkpoint folder to `path`, which appears complete or not at all.

    `eos` "natural" lets a run end by itself after some tens of frames; "unreachable" lets it end
    only by its length limit. The same arguments give the same bytes on the same device type.

    Raises:
        FileExistsError: `path` exists and is not an empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        folder = Path(scratch) / "checkpoint"
        folder.mkdir()
        shapes, speech_shapes = write_configuration(folder, size=size, variant=variant)
        draw = _Weights(seed, eos, device)
        _save(folder / MODEL_WEIGHTS, draw.tensors(shapes, torch.bfloat16))
        _save(folder / SPEECH_WEIGHTS, draw.tensors(speech_shapes, torch.float32))
        folder.rename(path)


def write_configuration(folder: Path, *, size: Size, variant: TaskType) -> tuple[Shapes, Shapes]:
    """Write everything but the weights; return the shapes of the model and the speech tokenizer."""
    (folder / "speech_tokenizer").mkdir()
    assistant_id, first_added_id = _write_text_tokenizer(folder, full=_is_full(size))
    config = _model_config(size, variant, assistant_id, first_added_id)
    speech = _speech_config(size)
    _write_json(folder / CONFIG, config)
    _write_json(folder / SPEECH_CONFIG, speech)
    _write_small_configs(folder)
    spec = ModelSpec.from_dir(folder)
    shapes = talker_shapes(spec.talker) | code_predictor_shapes(spec.code_predictor)
    if variant == "base":
        shapes |= _speaker_encoder_shapes(_SPEAKER_ENCODER | config["speaker_encoder_config"])
    speech_shapes = speech_decoder_shapes(spec.speech_decoder)
    return shapes, speech_shapes | _encoder_shapes(speech["encoder_config"])


class _Weights:
    """Random tensors that depend on (seed, name, shape) only, not on the order of drawing."""

    def __init__(self, seed: int, eos: Eos, device: str) -> None:
        self._seed = seed
        self._eos = eos
        self._device = torch.device(device)

    def tensors(self, shapes: Shapes, dtype: torch.dtype) -> dict[str, torch.Tensor]:
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
            head[_CODEC_EOS_ID] *= _EOS_GAIN if self._eos == "natural" else 0.0
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


def _encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Name and shape of each tensor of the speech tokenizer's Mimi encoder."""
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


def _speaker_encoder_shapes(config: Mapping[str, Any]) -> Shapes:
    """Name and shape of each tensor of the speaker encoder (ECAPA-TDNN), which only Base has."""
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


def _write_text_tokenizer(folder: Path, *, full: bool) -> tuple[int, int]:
    """Train and write the text tokenizer; return the ids of "assistant" and the first added token.

    A full-size one has the released number of ids and the released ids of everything a prompt's
    frame is made of: entries that no merge can produce fill the gaps.
    """
    tokenizer = qwen2_pipeline(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=_TRAINED_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # The prompt's slices need "assistant" and "user" to be one token each, hence the repetitions.
    tokenizer.train_from_iterator([*_TRAINING_TEXT, *["assistant\nuser\n"] * 100], trainer)
    tokenizer.model.save(str(folder))
    vocab: dict[str, int] = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    first_added_id = len(vocab)
    if full:
        first_added_id = _RELEASED_FIRST_ADDED_ID
        vocab["assistant"], moved = _RELEASED_ASSISTANT_ID, vocab["assistant"]
        taken = set(vocab.values())
        free = [moved, *range(_TRAINED_TOKENS, first_added_id)]
        vocab |= {f"<unused {i}>": i for i in free if i not in taken}
        vocab = dict(sorted(vocab.items(), key=lambda item: item[1]))
        _write_json(folder / "vocab.json", vocab, indent=None)
    added = {str(first_added_id + i): _added_token(token) for i, token in enumerate(_ADDED_TOKENS)}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "added_tokens_decoder": added,
            "bos_token": None,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "processor_class": "Qwen3TTSProcessor",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    )
    return vocab["assistant"], first_added_id


def _added_token(content: str) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": content not in _NOT_SPECIAL,
    }


def _model_config(
    size: Size, variant: TaskType, assistant_id: int, first_added_id: int
) -> dict[str, Any]:
    full = _is_full(size)
    token_id = {token: first_added_id + i for i, token in enumerate(_ADDED_TOKENS)}
    config: dict[str, Any] = {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": "0b6" if size in ("tiny-0b6", "0.6b") else "1b7",
        "tts_model_type": variant,
        "transformers_version": "4.57.3",
        "assistant_token_id": assistant_id,
        "im_start_token_id": token_id["<|im_start|>"],
        "im_end_token_id": token_id["<|im_end|>"],
        "tts_pad_token_id": token_id["<tts_pad>"],
        "tts_bos_token_id": token_id["<tts_text_bos>"],
        "tts_eos_token_id": token_id["<tts_text_eod>"],
        "talker_config": _talker_config(size, variant, first_added_id + len(_ADDED_TOKENS)),
    }
    if variant == "base":
        shared = {"enc_dim": _TALKER[size]["hidden_size"], "sample_rate": 24000}
        config["speaker_encoder_config"] = shared | ({} if full else _SMALL_SPEAKER_ENCODER)
    return config


def _talker_config(size: Size, variant: TaskType, num_text_ids: int) -> dict[str, Any]:
    full = _is_full(size)
    shape = (_FULL_TALKER if full else _SMALL_TALKER) | _TALKER[size]
    mrope_section = shape.pop("mrope_section")
    speakers = dict(_SPEAKERS) if variant == "custom_voice" else {}
    return {
        "model_type": "qwen3_tts_talker",
        **shape,
        "vocab_size": 3072,
        "text_vocab_size": _RELEASED_TEXT_VOCAB if full else num_text_ids,
        "num_code_groups": 16,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "rope_scaling": {
            "interleaved": True,
            "mrope_section": mrope_section,
            "rope_type": "default",
            "type": "default",
        },
        "max_position_embeddings": 32768,
        "position_id_per_seconds": 13,
        "sliding_window": None,
        "use_sliding_window": False,
        "use_cache": True,
        "initializer_range": 0.02,
        "codec_pad_id": 2148,
        "codec_bos_id": 2149,
        "codec_eos_token_id": _CODEC_EOS_ID,
        "codec_think_id": 2154,
        "codec_nothink_id": 2155,
        "codec_think_bos_id": 2156,
        "codec_think_eos_id": 2157,
        "codec_language_id": _LANGUAGES | (_DIALECTS if speakers else {}),
        "spk_id": speakers,
        "spk_is_dialect": {name: _SPEAKER_DIALECTS.get(name, False) for name in speakers},
        "code_predictor_config": _code_predictor_config(full),
    }


def _code_predictor_config(full: bool) -> dict[str, Any]:
    shape = _FULL_PREDICTOR if full else _SMALL_PREDICTOR
    return {
        "model_type": "qwen3_tts_talker_code_predictor",
        **shape,
        "vocab_size": 2048,
        "num_code_groups": 16,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "rope_scaling": None,
        "max_position_embeddings": 65536,
        "layer_types": ["full_attention"] * shape["num_hidden_layers"],
        "sliding_window": None,
        "use_sliding_window": False,
        "use_cache": True,
        "initializer_range": 0.02,
    }


def _speech_config(size: Size) -> dict[str, Any]:
    full = _is_full(size)
    decoder = {
        **(_FULL_DECODER if full else _SMALL_DECODER),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "codebook_size": 2048,
        "hidden_act": "silu",
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "num_quantizers": 16,
        "num_semantic_quantizers": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "semantic_codebook_size": 4096,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }
    encoder = {
        **(_FULL_ENCODER if full else _SMALL_ENCODER),
        "_frame_rate": 12.5,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "audio_channels": 1,
        "codebook_size": 2048,
        "compress": 2,
        "dilation_growth_rate": 2,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "kernel_size": 7,
        "last_kernel_size": 3,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "norm_eps": 1e-05,
        "normalize": False,
        "num_quantizers": 32,
        "num_residual_layers": 1,
        "num_semantic_quantizers": 1,
        "pad_mode": "constant",
        "residual_kernel_size": 3,
        "rope_theta": 10000.0,
        "sampling_rate": 24000,
        "sliding_window": 250,
        "trim_right_ratio": 1.0,
        "upsampling_ratios": [8, 6, 5, 4],
        "use_cache": False,
        "use_causal_conv": True,
        "use_conv_shortcut": False,
        "use_streaming": False,
    }
    return {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "model_type": "qwen3_tts_tokenizer_12hz",
        "encoder_valid_num_quantizers": 16,
        "input_sample_rate": 24000,
        "output_sample_rate": 24000,
        "decode_upsample_rate": 1920,
        "encode_downsample_rate": 1920,
        "decoder_config": decoder,
        "encoder_config": encoder,
        "transformers_version": "4.57.3",
    }


def _write_small_configs(folder: Path) -> None:
    """Write the files whose content all releases share."""
    _write_json(
        folder / GENERATION_CONFIG,
        {
            "do_sample": True,
            "repetition_penalty": 1.05,
            "temperature": 0.9,
            "top_p": 1.0,
            "top_k": 50,
            "subtalker_dosample": True,
            "subtalker_temperature": 0.9,
            "subtalker_top_p": 1.0,
            "subtalker_top_k": 50,
            "max_new_tokens": 8192,
        },
    )
    _write_json(
        folder / "preprocessor_config.json",
        {
            "padding_side": "left",
            "padding_value": 0.0,
            "processor_class": "Qwen3TTSProcessor",
            "return_attention_mask": True,
        },
    )
    _write_json(
        folder / "speech_tokenizer/configuration.json",
        {"framework": "pytorch", "task": "feature-extraction", "allow_remote": True},
    )
    _write_json(
        folder / "speech_tokenizer/preprocessor_config.json",
        {
            "chunk_length_s": None,
            "feature_extractor_type": "EncodecFeatureExtractor",
            "feature_size": 1,
            "overlap": None,
            "padding_side": "right",
            "padding_value": 0.0,
            "return_attention_mask": True,
            "sampling_rate": 24000,
        },
    )


def _is_full(size: Size) -> bool:
    return not size.startswith("tiny")


def _write_json(file: Path, content: Any, indent: int | None = 2) -> None:
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def _save(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, str(file), metadata={"format": "pt"})
    file.chmod(0o644)  # the library creates it for its owner only


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.models.random_checkpoint",
        description="Write a checkpoint with random weights in the released on-disk format.",
    )
    parser.add_argument("out", type=Path, help="folder to write; must not exist, or be empty")
    parser.add_argument("--size", choices=get_args(Size), default="tiny")
    parser.add_argument("--variant", choices=get_args(TaskType), default="custom_voice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eos", choices=get_args(Eos), default="natural")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    write_checkpoint(
        args.out,
        size=args.size,
        variant=args.variant,
        seed=args.seed,
        eos=args.eos,
        device=args.device,
    )


if __name__ == "__main__":
    main()
