"""`ModelSpec` from the configuration files of a checkpoint; whatever is wrong names file and key.

Source of the layout: config.json, generation_config.json and speech_tokenizer/config.json of the
Qwen3-TTS 12Hz releases.
"""

from pathlib import Path
from typing import Final, Literal

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.encoder_reading import read_voice_encoder
from serve_app.models.checkpoint.sections import Section
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
from serve_app.types import Sampling, TaskType, TextNeeds

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
SPEECH_CONFIG: Final = "speech_tokenizer/config.json"
TEXT_NEEDS: Final = "text_needs.json"

_MODEL_TYPE: Final = "qwen3_tts"
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
    config = Section.read(path, CONFIG)
    speech = Section.read(path, SPEECH_CONFIG)
    if config.data.get("model_type", _MODEL_TYPE) != _MODEL_TYPE:
        config.require("model_type", _MODEL_TYPE)  # another one's lacks most of what follows
    config.require("tokenizer_type", _TOKENIZER_TYPE)
    speech.require("model_type", _TOKENIZER_TYPE)
    talker = config.section("talker_config")
    code_predictor = talker.section("code_predictor_config")
    talker_spec = _talker(talker)
    task = _task(config)
    spec = ModelSpec(
        task=task,
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
        generation=_generation(Section.read(path, GENERATION_CONFIG)),
        text=TextSpec(
            im_start_id=config.integer("im_start_token_id"),
            im_end_id=config.integer("im_end_token_id"),
            assistant_id=config.integer("assistant_token_id"),
            tts_pad_id=config.integer("tts_pad_token_id"),
            tts_bos_id=config.integer("tts_bos_token_id"),
            tts_eos_id=config.integer("tts_eos_token_id"),
        ),
        voice_aliases=read_voice_aliases(path, talker_spec.speaker_ids),
        voice_encoder=read_voice_encoder(config, speech) if task == "base" else None,
        text_needs=read_text_needs(path),
    )
    _check_groups(spec)
    _check_ids(path, spec)
    _check_codes(path, spec)
    _check_voice_encoder(path, spec)
    return spec


def _task(config: Section) -> TaskType:
    config.require("tts_model_type", "custom_voice", "voice_design", "base")
    return config.value("tts_model_type")


def _rope_theta(section: Section) -> float:
    # transformers 5 writes rope_theta into rope_parameters, earlier versions beside it.
    if "rope_theta" in section.data:
        return section.number("rope_theta")
    if isinstance(section.data.get("rope_parameters"), dict):
        return section.section("rope_parameters").number("rope_theta")
    raise section.fail("rope_theta", "is missing (also from rope_parameters)")


def _transformer(section: Section) -> TransformerSpec:
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


def _talker(section: Section) -> TalkerSpec:
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


def _speech_decoder(config: Section) -> SpeechDecoderSpec:
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


def _generation(section: Section) -> GenerationSpec:
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


def read_text_needs(path: Path) -> TextNeeds:
    """Read the JSON object of a file that the releases do not have; TextNeeds() where it is not.

    Raises:
        CheckpointError: the file is damaged, lacks a key (`letters` may be missing), or bounds what
            has to be more than 0.
    """
    if not (path / TEXT_NEEDS).is_file():
        return TextNeeds()
    section = Section.read(path, TEXT_NEEDS)
    needs = TextNeeds(
        max_unit_frames=section.integer("max_unit_frames"),
        max_frames_per_token=section.integer("max_frames_per_token"),
        plain_words=section.flag("plain_words"),
        letters=section.text("letters") if "letters" in section.data else "",
    )
    for key in ("max_unit_frames", "max_frames_per_token"):
        if getattr(needs, key) < 1:
            raise CheckpointError(section.file, f"{key} must be at least 1")
    return needs


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


def _check_voice_encoder(path: Path, spec: ModelSpec) -> None:
    """What the encoders make must fit into the talker's prompt, and before the decoder's codes."""
    encoder = spec.voice_encoder
    if encoder is None:
        return
    hidden = spec.talker.transformer.hidden_size
    if encoder.speaker.output_size != hidden:
        reason = f"enc_dim is {encoder.speaker.output_size}, and the talker is {hidden} wide"
        raise CheckpointError(str(path / CONFIG), f"speaker_encoder_config.{reason}")
    decoder, speech = spec.speech_decoder, encoder.speech
    made = (speech.num_code_groups, speech.samples_per_frame, speech.sample_rate_hz)
    read = (decoder.num_code_groups, decoder.samples_per_frame, decoder.sample_rate_hz)
    if made != read:
        reason = "code groups, samples per frame and sample rate of encoder and decoder differ"
        raise CheckpointError(str(path / SPEECH_CONFIG), f"{reason}: {made}, {read}")
