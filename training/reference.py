"""The reference package's networks, for training; its other parts are not loaded.

The package imports libraries for audio files, for the 25Hz tokenizer and for its demo. Where one is
missing, an empty module stands in for it during the import.
"""

import importlib.util
import sys
import types
from typing import Any, Final

# Before any stand-in exists: these look for torchaudio when they are imported.
from transformers import AutoModel, AutoProcessor, MimiConfig, MimiModel  # noqa: F401

_OPTIONAL: Final = (
    "torchaudio",
    "torchaudio.compliance",
    "torchaudio.compliance.kaldi",
    "librosa",
    "librosa.filters",
    "sox",
    "soundfile",
    "onnxruntime",
)


class _Theta:
    """`rope_theta` of a configuration that keeps it among its rope parameters.

    The reference reads it where transformers had it before; an instance's own value goes first.
    """

    def __get__(self, config: Any, owner: Any = None) -> float:
        parameters = getattr(config, "rope_parameters", None) or {}
        return float(parameters.get("rope_theta", 10_000.0))


class _StandIn(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012  # a package, so that submodules may be named

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _missing(name: str) -> bool:
    if name.startswith("torchaudio"):
        # A torchaudio of another build breaks the import, and nothing here needs it.
        return name not in sys.modules
    root = name.partition(".")[0]
    return root not in sys.modules and importlib.util.find_spec(root) is None


def load_reference() -> tuple[Any, Any]:
    """Import the modules of the speech tokenizer and of the model."""
    if not hasattr(MimiConfig(), "rope_theta"):  # transformers from 5.17 on
        MimiConfig.rope_theta = _Theta()  # pyright: ignore[reportAttributeAccessIssue]
    stand_ins = {name: _StandIn(name) for name in _OPTIONAL if _missing(name)}
    for name, module in stand_ins.items():
        parent, _, child = name.rpartition(".")
        if parent in stand_ins:
            setattr(stand_ins[parent], child, module)
    sys.modules.update(stand_ins)
    try:
        import qwen_tts.core.models.modeling_qwen3_tts as model
        import qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 as speech
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return speech, model
