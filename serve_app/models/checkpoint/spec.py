"""Facts of a checkpoint, filled by `reading` from its files: no default here, no literal elsewhere.

Torch-free, so that a model can be described without being loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from serve_app.types import VOICE_SOURCES, ModelCard, Sampling, TaskType, TextNeeds

_SIZES_WITHOUT_INSTRUCTIONS: Final = ("0b6",)
# Hard coded in the reference's generate(), which never samples them; no file states it.
_NUM_CONTROL_IDS: Final = 1024


@dataclass(frozen=True, slots=True)
class TransformerSpec:
    """A Qwen3 decoder stack: pre-norm, GQA with q/k norm, SwiGLU, rotate-half RoPE."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float


@dataclass(frozen=True, slots=True)
class TalkerSpec:
    """The autoregressive LM over code group 0."""

    transformer: TransformerSpec
    vocab_size: int
    text_vocab_size: int
    text_hidden_size: int
    num_code_groups: int
    max_position_embeddings: int
    codec_pad_id: int
    codec_bos_id: int
    codec_eos_id: int
    codec_think_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    language_ids: Mapping[str, int]
    speaker_ids: Mapping[str, int]
    speaker_dialects: Mapping[str, str]

    @property
    def num_codes(self) -> int:
        """Ids that are codes of group 0; those from here on are control ids, the EOS among them."""
        return self.vocab_size - _NUM_CONTROL_IDS


@dataclass(frozen=True, slots=True)
class CodePredictorSpec:
    """The transformer that fills groups 1..Q-1 of a frame; inputs are `talker_hidden_size` wide."""

    transformer: TransformerSpec
    vocab_size: int
    num_code_groups: int
    talker_hidden_size: int
    talker_vocab_size: int

    @property
    def has_projection(self) -> bool:
        """Whether small_to_mtp_projection exists (it does exactly when the widths differ)."""
        return self.talker_hidden_size != self.transformer.hidden_size


@dataclass(frozen=True, slots=True)
class SpeechDecoderSpec:
    """The decoder half of the speech tokenizer; `vq_dim` is the width of a codebook entry."""

    transformer: TransformerSpec
    sliding_window: int
    latent_dim: int
    codebook_dim: int
    codebook_size: int
    vq_dim: int
    num_code_groups: int
    decoder_dim: int
    upsample_rates: tuple[int, ...]
    upsampling_ratios: tuple[int, ...]
    sample_rate_hz: int
    samples_per_frame: int


@dataclass(frozen=True, slots=True)
class SpeakerEncoderSpec:
    """The ECAPA-TDNN that makes a voice's vector; its blocks are the middle of `channels`."""

    output_size: int
    sample_rate_hz: int
    num_mel_bands: int
    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    dilations: tuple[int, ...]
    attention_channels: int
    res2net_scale: int
    squeezed_channels: int


@dataclass(frozen=True, slots=True)
class SpeechEncoderSpec:
    """The encoder half of the speech tokenizer, a Mimi encoder.

    mimi: the keys of its configuration, as transformers' MimiConfig knows them.
    num_code_groups: of its codes, the first so many count.
    """

    mimi: Mapping[str, Any]
    num_code_groups: int
    samples_per_frame: int
    sample_rate_hz: int


@dataclass(frozen=True, slots=True)
class VoiceEncoderSpec:
    """What a recording becomes a voice by."""

    speaker: SpeakerEncoderSpec
    speech: SpeechEncoderSpec


@dataclass(frozen=True, slots=True)
class GenerationSpec:
    """generation_config.json; `min_new_tokens` is the reference's constant 2."""

    talker: Sampling
    subtalker: Sampling
    max_new_tokens: int
    min_new_tokens: int


@dataclass(frozen=True, slots=True)
class TextSpec:
    """Ids of the text side of a prompt."""

    im_start_id: int
    im_end_id: int
    assistant_id: int
    tts_pad_id: int
    tts_bos_id: int
    tts_eos_id: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One checkpoint; `size` is the file's tts_model_size ("0b6" or "1b7").

    voice_encoder: of a checkpoint that clones voices; None: it does not.
    """

    task: TaskType
    size: str
    talker: TalkerSpec
    code_predictor: CodePredictorSpec
    speech_decoder: SpeechDecoderSpec
    generation: GenerationSpec
    text: TextSpec
    voice_aliases: Mapping[str, str]
    voice_encoder: VoiceEncoderSpec | None
    text_needs: TextNeeds = field(default_factory=TextNeeds)

    @property
    def languages(self) -> tuple[str, ...]:
        """What a request may name: "auto" and every language that is not a dialect."""
        return ("auto", *(name for name in self.talker.language_ids if "dialect" not in name))

    @property
    def supports_instructions(self) -> bool:
        """Whether an instruction reaches the prompt; 0.6B custom voices drop it."""
        if self.task == "voice_design":
            return True
        return self.task == "custom_voice" and self.size not in _SIZES_WITHOUT_INSTRUCTIONS

    def card(self, name: str, path: str, embedded: bool) -> ModelCard:
        """Describe the checkpoint; `voice_languages` knows the dialect speakers only."""
        return ModelCard(
            name=name,
            task=self.task,
            size=self.size,
            languages=self.languages,
            voices=tuple(self.talker.speaker_ids),
            voice_sources=VOICE_SOURCES[self.task],
            supports_instructions=self.supports_instructions,
            sample_rate_hz=self.speech_decoder.sample_rate_hz,
            samples_per_frame=self.speech_decoder.samples_per_frame,
            max_new_tokens=self.generation.max_new_tokens,
            path=path,
            embedded=embedded,
            voice_languages=dict(self.talker.speaker_dialects),
            voice_aliases=dict(self.voice_aliases),
            speaker_vector_size=self.voice_encoder and self.voice_encoder.speaker.output_size,
            text_needs=self.text_needs,
        )
