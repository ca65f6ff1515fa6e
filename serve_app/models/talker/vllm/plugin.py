"""vLLM plugin entry point (`vllm.general_plugins`): makes the talker known to vLLM; repeatable."""

MODEL_TYPE = "qwen3_tts"
ARCHITECTURE = "Qwen3TTSForConditionalGeneration"


def register() -> None:
    """Register the config class, and the model class by its name, so that nothing heavy is
    imported early.
    """
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from serve_app.models.talker.vllm.hf_config import TalkerHfConfig

    AutoConfig.register(MODEL_TYPE, TalkerHfConfig, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "serve_app.models.talker.vllm.model:TalkerForVllm")
