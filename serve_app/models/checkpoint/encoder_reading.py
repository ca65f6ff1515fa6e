"""Facts of the encoders that a recording becomes a voice by; only Base checkpoints need them."""

from typing import Any, Final

from serve_app.models.checkpoint.sections import Section
from serve_app.models.checkpoint.spec import (
    SpeakerEncoderSpec,
    SpeechEncoderSpec,
    VoiceEncoderSpec,
)

# What the releases' config.json leaves to the reference's class, whose defaults are the released
# values here (the shapes of the released tensors say so).
_RELEASED: Final[dict[str, Any]] = {
    "mel_dim": 128,
    "enc_channels": [512, 512, 512, 512, 1536],
    "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1],
    "enc_attention_channels": 128,
    "enc_res2net_scale": 8,
    "enc_se_channels": 128,
}
# Of the speech encoder, what shapes follow from and its network is built by.
_MIMI_INTEGERS: Final = (
    *("audio_channels", "num_filters", "compress", "kernel_size", "last_kernel_size"),
    *("residual_kernel_size", "num_residual_layers", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("codebook_dim", "codebook_size", "vector_quantization_hidden_dimension"),
    *("num_quantizers", "max_position_embeddings", "upsample_groups"),
)


def read_voice_encoder(config: Section, speech: Section) -> VoiceEncoderSpec:
    """Read the sections of a Base checkpoint's encoders.

    Args:
        config: config.json.
        speech: speech_tokenizer/config.json.

    Raises:
        CheckpointError: a key is missing, of the wrong type, or says something unsupported.
    """
    return VoiceEncoderSpec(_speaker(config), _speech(speech))


def _speaker(config: Section) -> SpeakerEncoderSpec:
    stated = config.section("speaker_encoder_config")
    section = Section(stated.file, stated.where, _RELEASED | dict(stated.data))
    spec = SpeakerEncoderSpec(
        output_size=section.integer("enc_dim"),
        sample_rate_hz=section.integer("sample_rate"),
        num_mel_bands=section.integer("mel_dim"),
        channels=section.integers("enc_channels"),
        kernel_sizes=section.integers("enc_kernel_sizes"),
        dilations=section.integers("enc_dilations"),
        attention_channels=section.integer("enc_attention_channels"),
        res2net_scale=section.integer("enc_res2net_scale"),
        squeezed_channels=section.integer("enc_se_channels"),
    )
    section.require("sample_rate", 24000)  # the mel bands are those of this rate
    if not len(spec.channels) == len(spec.kernel_sizes) == len(spec.dilations) >= 3:
        raise section.fail("enc_channels", "has another length than kernel sizes or dilations")
    if spec.channels[-1] != sum(spec.channels[1:-1]):
        raise section.fail("enc_channels", f"must end with the sum of its blocks: {spec.channels}")
    return spec


def _speech(speech: Section) -> SpeechEncoderSpec:
    section = speech.section("encoder_config")
    for key in _MIMI_INTEGERS:
        section.integer(key)
    section.integers("upsampling_ratios")
    section.require("num_semantic_quantizers", 1)
    section.require("use_causal_conv", True)
    section.require("num_residual_layers", 1)
    section.require("sampling_rate", speech.integer("input_sample_rate"))
    groups = speech.integer("encoder_valid_num_quantizers")
    if groups > section.integer("num_quantizers"):
        raise speech.fail("encoder_valid_num_quantizers", f"is {groups}, more than there are")
    return SpeechEncoderSpec(
        mimi=dict(section.data),
        num_code_groups=groups,
        samples_per_frame=speech.integer("encode_downsample_rate"),
        sample_rate_hz=speech.integer("input_sample_rate"),
    )
