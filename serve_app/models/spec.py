"""Facts of a checkpoint, read from its files: nothing here has a default, nothing elsewhere is a literal.

Torch-free, so that the app builder and the HTTP layer can describe a model without loading it.
Source: config.json, generation_config.json and speech_tokenizer/config.json of the Qwen3-TTS 12Hz releases.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from serve_app.types import Sampling, TaskType


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


@dataclass(frozen=True, slots=True)
class CodePredictorSpec:
    """The transformer that fills groups 1..Q-1 of one frame; `talker_hidden_size` is the width of its inputs."""

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
    """The decoder half of the speech tokenizer."""

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
    """One checkpoint."""

    task: TaskType
    size: str
    talker: TalkerSpec
    code_predictor: CodePredictorSpec
    speech_decoder: SpeechDecoderSpec
    generation: GenerationSpec
    text: TextSpec
