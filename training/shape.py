"""The sizes of the voice, and the released configuration files filled with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, Final

from serve_app.models.random_checkpoint.configuration import model_config, speech_config
from serve_app.types import TextNeeds

# The control ids of a release follow its 2048 codes and end at 3072. The reference forbids the
# upper 1024 ids of any vocabulary but the end of speech, so they move down with a smaller codebook.
_RELEASED_CODES: Final = 2048
_NUM_CONTROL_IDS: Final = 1024
_FIRST_SPEAKER_ID: Final = 1000
_CONTROL_KEYS: Final = (
    "codec_pad_id",
    "codec_bos_id",
    "codec_eos_token_id",
    "codec_think_id",
    "codec_nothink_id",
    "codec_think_bos_id",
    "codec_think_eos_id",
)
_CODE_RATE_HZ: Final = 12.5
# As long as the sentences that it learns, at no less than half their pace, in plain words.
TEXT_NEEDS_OF_VOICE: Final = TextNeeds(200, 4, plain_words=True, letters=ascii_lowercase)
# OpenAI's names, by sex and, where they are known for it (ballad, fable), by accent.
OPENAI_VOICES: Final[Mapping[str, str]] = {
    "alloy": "heart",
    "ash": "michael",
    "ballad": "daniel",
    "cedar": "michael",
    "coral": "emma",
    "echo": "michael",
    "fable": "daniel",
    "marin": "heart",
    "nova": "heart",
    "onyx": "daniel",
    "sage": "emma",
    "shimmer": "emma",
    "verse": "michael",
}


@dataclass(frozen=True)
class Transformer:
    """One decoder stack; widths in channels."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int

    def keys(self) -> dict[str, int]:
        """Return the sizes under the names of the configuration files."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }


@dataclass(frozen=True)
class VoiceShape:
    """Everything that decides how large the checkpoint is and how long a frame takes.

    `num_codes` is the size of each of the 16 codebooks; `entry_dim` the width of an entry.
    The attention windows are in frames (encoder: of 40 ms, decoder: of 80 ms).
    """

    speakers: tuple[str, ...] = ("heart", "michael", "emma", "daniel")
    num_codes: int = 256
    num_groups: int = 8
    entry_dim: int = 40
    text_tokens: int = 1024
    text_hidden: int = 128
    talker: Transformer = Transformer(256, 512, 6, 4, 2, 64)
    predictor: Transformer = Transformer(192, 384, 2, 4, 2, 48)
    decoder: Transformer = Transformer(128, 384, 3, 4, 4, 32)
    decoder_window: int = 16
    latent: int = 128
    decoder_dim: int = 320
    encoder: Transformer = Transformer(128, 256, 2, 4, 4, 32)
    encoder_window: int = 32
    encoder_filters: int = 12


def voice_model_config(shape: VoiceShape, token_id: Mapping[str, int]) -> dict[str, Any]:
    """Return config.json: a small custom voice that ignores instructions, as 0.6B does."""
    config = model_config("tiny-0b6", "custom_voice", token_id)
    talker: dict[str, Any] = config["talker_config"]
    shift = shape.num_codes - _RELEASED_CODES
    for key in _CONTROL_KEYS:
        talker[key] += shift
    languages: dict[str, int] = talker["codec_language_id"]
    first_speaker = shape.num_codes + _FIRST_SPEAKER_ID
    thirds = shape.talker.head_dim // 6
    talker |= shape.talker.keys() | {
        "vocab_size": shape.num_codes + _NUM_CONTROL_IDS,
        "text_hidden_size": shape.text_hidden,
        "num_code_groups": shape.num_groups,
        "codec_language_id": {"english": languages["english"] + shift},
        "spk_id": {name: first_speaker + i for i, name in enumerate(shape.speakers)},
        "spk_is_dialect": dict.fromkeys(shape.speakers, False),
    }
    talker["rope_scaling"]["mrope_section"] = [
        shape.talker.head_dim // 2 - 2 * thirds,
        thirds,
        thirds,
    ]
    talker["code_predictor_config"] |= shape.predictor.keys() | {
        "vocab_size": shape.num_codes,
        "num_code_groups": shape.num_groups,
        "layer_types": ["full_attention"] * shape.predictor.layers,
    }
    return config


def voice_speech_config(shape: VoiceShape) -> dict[str, Any]:
    """Return speech_tokenizer/config.json."""
    config = speech_config("tiny-0b6")
    config["encoder_valid_num_quantizers"] = shape.num_groups
    config["decoder_config"] |= shape.decoder.keys() | {
        "latent_dim": shape.latent,
        "codebook_dim": 2 * shape.entry_dim,
        "codebook_size": shape.num_codes,
        "decoder_dim": shape.decoder_dim,
        "sliding_window": shape.decoder_window,
        "num_quantizers": shape.num_groups,
        "vector_quantization_hidden_dimension": 2 * shape.entry_dim,
    }
    config["encoder_config"] |= shape.encoder.keys() | {
        "_frame_rate": _CODE_RATE_HZ,
        "num_filters": shape.encoder_filters,
        "codebook_dim": shape.entry_dim,
        "codebook_size": shape.num_codes,
        "vector_quantization_hidden_dimension": shape.entry_dim,
        "upsample_groups": shape.encoder.hidden,
        "num_quantizers": shape.num_groups,
        "sliding_window": shape.encoder_window,
    }
    return config
