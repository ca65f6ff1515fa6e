"""`ModelSpec` from the configuration files of a checkpoint; whatever is wrong names file and key.

Source of the layout: config.json, generation_config.json and speech_tokenizer/config.json of the
Qwen3-TTS 12Hz releases.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.spec import (
    CodePredictorSpec,
    GenerationSpec,
    ModelSpec,
    SpeechDecoderSpec,
    TalkerSpec,
    TextSpec,
    TransformerSpec,
)
from serve_app.models.checkpoint.voice_aliases import read_voice_aliases
from serve_app.types import Sampling, TaskType

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
SPEECH_CONFIG: Final = "speech_tokenizer/config.json"

_TOKENIZER_TYPE: Final = "qwen3_tts_tokenizer_12hz"
# Hard coded in the reference's generate(); no file states it.
_MIN_NEW_TOKENS: Final = 2


def read_spec(path: Path) -> ModelSpec:
    """Read the three configuration files of a checkpoint folder.

    Every key must stand in its file: the defaults of the reference's classes are not the
    released values.

    Raises:
        CheckpointError: a file is missing or damaged, a key is missing or of the wrong type,
            or the checkpoint is of a kind that is not supported (a 25Hz tokenizer, an unknown
            tts_model_type).
    """
    config = _Section.read(path, CONFIG)
    speech = _Section.read(path, SPEECH_CONFIG)
    config.require("tokenizer_type", _TOKENIZER_TYPE)
    speech.require("model_type", _TOKENIZER_TYPE)
    talker = config.section("talker_config")
    code_predictor = talker.section("code_predictor_config")
    talker_spec = _talker(talker)
    spec = ModelSpec(
        task=_task(config),
        size=config.text("tts_model_size"),
        talker=talker_spec,
        code_predictor=CodePredictorSpec(
            transformer=_transformer(code_predictor),
            vocab_size=code_predictor.integer("vocab_size"),
            num_code_groups=code_predictor.integer("num_code_groups"),
            talker_hidden_size=talker.integer("hidden_size"),
            talker_vocab_size=talker.integer("vocab_size"),
        ),
        speech_decoder=_speech_decoder(speech),
        generation=_generation(_Section.read(path, GENERATION_CONFIG)),
        text=TextSpec(
            im_start_id=config.integer("im_start_token_id"),
            im_end_id=config.integer("im_end_token_id"),
            assistant_id=config.integer("assistant_token_id"),
            tts_pad_id=config.integer("tts_pad_token_id"),
            tts_bos_id=config.integer("tts_bos_token_id"),
            tts_eos_id=config.integer("tts_eos_token_id"),
        ),
        voice_aliases=read_voice_aliases(path, talker_spec.speaker_ids),
    )
    _check_groups(spec)
    _check_ids(path, spec)
    _check_codes(path, spec)
    return spec


@dataclass(frozen=True, slots=True)
class _Section:
    """One JSON object of a file; every read names the file and the key when it fails."""

    file: str
    where: str
    data: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, name: str) -> "_Section":
        file = path / name
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(str(file), f"cannot be read: {reason}") from error
        except ValueError as error:
            raise CheckpointError(str(file), f"is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise CheckpointError(str(file), f"must hold a JSON object, not {type(data).__name__}")
        return cls(str(file), "", data)

    def fail(self, key: str, reason: str) -> CheckpointError:
        return CheckpointError(self.file, f"{self.where}{key} {reason}")

    def value(self, key: str) -> Any:
        if key not in self.data:
            raise self.fail(key, "is missing")
        return self.data[key]

    def section(self, key: str) -> "_Section":
        value = self.value(key)
        if not isinstance(value, dict):
            raise self.fail(key, f"must be an object, not {value!r}")
        return _Section(self.file, f"{self.where}{key}.", value)

    def integer(self, key: str) -> int:
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(key, f"must be an integer, not {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.value(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(key, f"must be a number, not {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, not {value!r}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.value(key)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.fail(key, f"must be a list of integers, not {value!r}")
        return tuple(value)

    def ids(self, key: str) -> dict[str, int]:
        section = self.section(key)
        return {name.lower(): section.integer(name) for name in section.data}

    def require(self, key: str, *supported: object) -> None:
        value = self.value(key)
        if value not in supported:
            names = " or ".join(repr(item) for item in supported)
            raise self.fail(key, f"is {value!r}; supported: {names}")


def _task(config: _Section) -> TaskType:
    config.require("tts_model_type", "custom_voice", "voice_design", "base")
    return config.value("tts_model_type")


def _rope_theta(section: _Section) -> float:
    # transformers 5 writes rope_theta into rope_parameters, earlier versions beside it.
    if "rope_theta" in section.data:
        return section.number("rope_theta")
    if isinstance(section.data.get("rope_parameters"), dict):
        return section.section("rope_parameters").number("rope_theta")
    raise section.fail("rope_theta", "is missing (also from rope_parameters)")


def _transformer(section: _Section) -> TransformerSpec:
    section.require("hidden_act", "silu")
    section.require("attention_bias", False)
    return TransformerSpec(
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("num_hidden_layers"),
        num_heads=section.integer("num_attention_heads"),
        num_kv_heads=section.integer("num_key_value_heads"),
        head_dim=section.integer("head_dim"),
        rms_norm_eps=section.number("rms_norm_eps"),
        rope_theta=_rope_theta(section),
    )


def _talker(section: _Section) -> TalkerSpec:
    language_ids = section.ids("codec_language_id")
    speaker_ids = section.ids("spk_id")
    dialects = section.section("spk_is_dialect")
    speaker_dialects: dict[str, str] = {}
    for speaker in dialects.data:
        if dialects.value(speaker) is not False:
            dialect = dialects.text(speaker)
            if dialect not in language_ids:
                raise dialects.fail(speaker, f"names {dialect!r}, which codec_language_id lacks")
            speaker_dialects[speaker.lower()] = dialect
    return TalkerSpec(
        transformer=_transformer(section),
        vocab_size=section.integer("vocab_size"),
        text_vocab_size=section.integer("text_vocab_size"),
        text_hidden_size=section.integer("text_hidden_size"),
        num_code_groups=section.integer("num_code_groups"),
        max_position_embeddings=section.integer("max_position_embeddings"),
        codec_pad_id=section.integer("codec_pad_id"),
        codec_bos_id=section.integer("codec_bos_id"),
        codec_eos_id=section.integer("codec_eos_token_id"),
        codec_think_id=section.integer("codec_think_id"),
        codec_nothink_id=section.integer("codec_nothink_id"),
        codec_think_bos_id=section.integer("codec_think_bos_id"),
        codec_think_eos_id=section.integer("codec_think_eos_id"),
        language_ids=language_ids,
        speaker_ids=speaker_ids,
        speaker_dialects=speaker_dialects,
    )


def _speech_decoder(config: _Section) -> SpeechDecoderSpec:
    section = config.section("decoder_config")
    section.require("num_semantic_quantizers", 1)
    return SpeechDecoderSpec(
        transformer=_transformer(section),
        sliding_window=section.integer("sliding_window"),
        latent_dim=section.integer("latent_dim"),
        codebook_dim=section.integer("codebook_dim"),
        codebook_size=section.integer("codebook_size"),
        vq_dim=section.integer("codebook_dim") // 2,  # as the reference; no key states it
        num_code_groups=section.integer("num_quantizers"),
        decoder_dim=section.integer("decoder_dim"),
        upsample_rates=section.integers("upsample_rates"),
        upsampling_ratios=section.integers("upsampling_ratios"),
        sample_rate_hz=config.integer("output_sample_rate"),
        samples_per_frame=config.integer("decode_upsample_rate"),
    )


def _generation(section: _Section) -> GenerationSpec:
    def sampling(prefix: Literal["", "subtalker_"], switch: str, penalty: float) -> Sampling:
        return Sampling(
            temperature=section.number(f"{prefix}temperature") if section.flag(switch) else 0.0,
            top_k=section.integer(f"{prefix}top_k"),
            top_p=section.number(f"{prefix}top_p"),
            repetition_penalty=penalty,
        )

    return GenerationSpec(
        talker=sampling("", "do_sample", section.number("repetition_penalty")),
        subtalker=sampling("subtalker_", "subtalker_dosample", 1.0),
        max_new_tokens=section.integer("max_new_tokens"),
        min_new_tokens=_MIN_NEW_TOKENS,
    )


def _check_ids(path: Path, spec: ModelSpec) -> None:
    """An id beyond its table would be an error of the device, long after start-up."""
    talker = spec.talker
    codec_ids = {
        "codec_pad_id": talker.codec_pad_id,
        "codec_bos_id": talker.codec_bos_id,
        "codec_eos_token_id": talker.codec_eos_id,
        "codec_think_id": talker.codec_think_id,
        "codec_nothink_id": talker.codec_nothink_id,
        "codec_think_bos_id": talker.codec_think_bos_id,
        "codec_think_eos_id": talker.codec_think_eos_id,
        **{f"codec_language_id.{name}": token for name, token in talker.language_ids.items()},
        **{f"spk_id.{name}": token for name, token in talker.speaker_ids.items()},
    }
    text_ids = {
        "im_start_token_id": spec.text.im_start_id,
        "im_end_token_id": spec.text.im_end_id,
        "assistant_token_id": spec.text.assistant_id,
        "tts_pad_token_id": spec.text.tts_pad_id,
        "tts_bos_token_id": spec.text.tts_bos_id,
        "tts_eos_token_id": spec.text.tts_eos_id,
    }
    for ids, size, table in (
        (codec_ids, talker.vocab_size, "vocab_size"),
        (text_ids, talker.text_vocab_size, "text_vocab_size"),
    ):
        for key, token in ids.items():
            if not 0 <= token < size:
                reason = f"{key} is {token}, outside of {table} {size}"
                raise CheckpointError(str(path / CONFIG), reason)


def _check_codes(path: Path, spec: ModelSpec) -> None:
    """A code that the speech decoder has no entry for would break streams long after start-up."""
    talker, entries = spec.talker, spec.speech_decoder.codebook_size
    file, books = str(path / CONFIG), f"codebook_size {entries} of {SPEECH_CONFIG}"
    if talker.num_codes < 1:
        reason = f"talker_config.vocab_size is {talker.vocab_size}, which leaves no id to sample"
        raise CheckpointError(file, reason)
    for key, codes in (
        ("talker_config.vocab_size", talker.num_codes),
        ("talker_config.code_predictor_config.vocab_size", spec.code_predictor.vocab_size),
    ):
        if codes > entries:
            raise CheckpointError(file, f"{key} allows {codes} codes, more than {books}")


def _check_groups(spec: ModelSpec) -> None:
    groups = {
        f"{CONFIG} talker_config": spec.talker.num_code_groups,
        f"{CONFIG} code_predictor_config": spec.code_predictor.num_code_groups,
        f"{SPEECH_CONFIG} num_quantizers": spec.speech_decoder.num_code_groups,
    }
    if len(set(groups.values())) > 1:
        raise CheckpointError(CONFIG, f"the files disagree on the number of code groups: {groups}")
