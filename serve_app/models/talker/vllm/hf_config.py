"""The transformers view of a Qwen3-TTS checkpoint: what vLLM needs to size its engine."""

from typing import Any

from transformers import PretrainedConfig, Qwen3Config


class TalkerHfConfig(PretrainedConfig):
    """config.json of a released checkpoint; `get_text_config` is the talker as a plain Qwen3 LM.

    The release states multimodal rotary sections, but all three position streams are the same
    number, which is ordinary 1-D RoPE; the sections are dropped so that vLLM does not ask for three
    rows of positions.
    """

    model_type = "qwen3_tts"

    def __init__(self, talker_config: dict[str, Any] | None = None, **kwargs: Any) -> None:
        fields = dict(talker_config or {})
        for name in ("model_type", "code_predictor_config", "rope_scaling"):
            fields.pop(name, None)
        theta = fields.pop("rope_theta", None) or (fields.pop("rope_parameters", None) or {}).get(
            "rope_theta"
        )
        fields["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
        fields["tie_word_embeddings"] = False
        self.talker_config = Qwen3Config(**fields)
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> Qwen3Config:
        return self.talker_config
