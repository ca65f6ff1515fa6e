"""The configuration files of a random checkpoint: a release's, with the sizes that are wanted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from serve_app.models.checkpoint.reading import GENERATION_CONFIG
from serve_app.types import TaskType

Size = Literal["tiny", "tiny-0b6", "0.6b", "1.7b"]

CODEC_EOS_ID: Final = 2150
_RELEASED_TEXT_VOCAB: Final = 151936

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
_SMALL_SPEAKER_ENCODER: Final = {
    "enc_channels": [32, 32, 32, 32, 96], "enc_attention_channels": 16, "enc_res2net_scale": 4,
    "enc_se_channels": 16,
}  # fmt: skip


def model_config(size: Size, variant: TaskType, token_id: Mapping[str, int]) -> dict[str, Any]:
    """The model's configuration.

    Args:
        size: of all its parts.
        variant: its task.
        token_id: by text of the tokens that a prompt needs, the last token's among them.
    """
    full = is_full(size)
    config: dict[str, Any] = {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": "0b6" if size in ("tiny-0b6", "0.6b") else "1b7",
        "tts_model_type": variant,
        "transformers_version": "4.57.3",
        "assistant_token_id": token_id["assistant"],
        "im_start_token_id": token_id["<|im_start|>"],
        "im_end_token_id": token_id["<|im_end|>"],
        "tts_pad_token_id": token_id["<tts_pad>"],
        "tts_bos_token_id": token_id["<tts_text_bos>"],
        "tts_eos_token_id": token_id["<tts_text_eod>"],
        "talker_config": _talker_config(size, variant, max(token_id.values()) + 1),
    }
    if variant == "base":
        shared = {"enc_dim": _TALKER[size]["hidden_size"], "sample_rate": 24000}
        config["speaker_encoder_config"] = shared | ({} if full else _SMALL_SPEAKER_ENCODER)
    return config


def _talker_config(size: Size, variant: TaskType, num_text_ids: int) -> dict[str, Any]:
    full = is_full(size)
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
        "codec_eos_token_id": CODEC_EOS_ID,
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


def speech_config(size: Size) -> dict[str, Any]:
    """The speech tokenizer's configuration."""
    full = is_full(size)
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


def write_shared_configs(folder: Path) -> None:
    """Write the files whose content all releases share."""
    write_json(
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
    write_json(
        folder / "preprocessor_config.json",
        {
            "padding_side": "left",
            "padding_value": 0.0,
            "processor_class": "Qwen3TTSProcessor",
            "return_attention_mask": True,
        },
    )
    write_json(
        folder / "speech_tokenizer/configuration.json",
        {"framework": "pytorch", "task": "feature-extraction", "allow_remote": True},
    )
    write_json(
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


def is_full(size: Size) -> bool:
    """Whether `size` is that of a release."""
    return not size.startswith("tiny")


def write_json(file: Path, content: Any, indent: int | None = 2) -> None:
    """Write `content` as UTF-8, not escaped, with a line feed at the end."""
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
