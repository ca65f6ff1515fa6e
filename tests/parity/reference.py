"""The reference package `qwen_tts` on the CPU, fp32 and eager: the oracle of the parity tests.

Needs qwen-tts-hf, librosa, sox, onnxruntime and accelerate. torchaudio, which only the 25Hz code
imports, is replaced by an empty package during the import, so that nothing else ever sees it.
"""

import importlib.util
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

# Before the stub exists: these modules look for torchaudio when they are imported.
from transformers import AutoModel, AutoProcessor, MimiConfig, MimiModel  # noqa: F401

if importlib.util.find_spec("qwen_tts") is None:
    pytest.skip("the reference package qwen-tts-hf is not installed", allow_module_level=True)


def _import_reference() -> Any:
    names = ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi")
    absent = [name for name in names if name not in sys.modules]
    stubs = {name: types.ModuleType(name) for name in absent}
    for name, stub in stubs.items():
        parent, _, child = name.rpartition(".")
        if parent in stubs:
            setattr(stubs[parent], child, stub)
    sys.modules.update(stubs)
    try:
        from qwen_tts import Qwen3TTSModel
    finally:
        for name in stubs:
            del sys.modules[name]
    return Qwen3TTSModel


@dataclass(frozen=True)
class ReferenceRun:
    """One greedy run of the reference.

    prompt_embeds: float32 [L, H].
    trailing: float32 [n, H], the text rows added to the decode inputs.
    codes: int64 [T, Q], without the EOS row.
    hidden: float32 [T, H], the talker's last hidden state (after the final norm) that each frame
        was made from.
    wav: float32 [N].
    """

    prompt_embeds: np.ndarray
    trailing: np.ndarray
    codes: np.ndarray
    hidden: np.ndarray
    wav: np.ndarray


class Reference:
    """One checkpoint in the reference package."""

    def __init__(self, path: Path) -> None:
        model_class = _import_reference()
        self.tts = model_class.from_pretrained(
            str(path), dtype=torch.float32, attn_implementation="eager"
        )

    @property
    def model(self) -> Any:
        """The reference's Qwen3TTSForConditionalGeneration."""
        return self.tts.model

    def token_ids(self, text: str) -> list[int]:
        """Return the processor's ids of `text`."""
        return self.tts.processor(text=text, return_tensors="pt", padding=True)["input_ids"][
            0
        ].tolist()

    def clone(self, samples: np.ndarray, text: str | None) -> Any:
        """The prompt item of a recording (float32 [N], 24 kHz); without its text, x-vector only."""
        (item,) = self.tts.create_voice_clone_prompt(
            (samples, 24000), ref_text=text, x_vector_only_mode=text is None
        )
        return item

    def speak(
        self,
        text: str,
        *,
        speaker: str | None = None,
        cloned: Any = None,
        language: str = "Auto",
        instruct: str | None = None,
        non_streaming_mode: bool = True,
        max_new_tokens: int = 40,
        **sampling: Any,
    ) -> ReferenceRun:
        """Synthesise greedily; without an EOS the reference returns max_new_tokens - 1 frames.

        `cloned` is what `clone` returns, and of a Base checkpoint all that speaks.
        """
        record: dict[str, Any] = {}
        model, talker = self.model, self.model.talker
        talker_generate, generate = talker.generate, model.generate

        def recorded_talker_generate(**kwargs: Any) -> Any:
            record["prompt"] = kwargs["inputs_embeds"][0]
            record["trailing"] = kwargs["trailing_text_hidden"][0]
            return talker_generate(**kwargs)

        def recorded_generate(*args: Any, **kwargs: Any) -> Any:
            record["codes"], record["hidden"] = generate(*args, **kwargs)
            return record["codes"], record["hidden"]

        options = {
            "text": text,
            "language": language,
            "non_streaming_mode": non_streaming_mode,
            "do_sample": False,
            "subtalker_dosample": False,
            "max_new_tokens": max_new_tokens,
            **sampling,
        }
        talker.generate, model.generate = recorded_talker_generate, recorded_generate
        try:
            if cloned is not None:
                wavs, _ = self.tts.generate_voice_clone(voice_clone_prompt=[cloned], **options)
            elif model.tts_model_type == "voice_design":
                wavs, _ = self.tts.generate_voice_design(instruct=instruct or "", **options)
            else:
                wavs, _ = self.tts.generate_custom_voice(
                    speaker=speaker, instruct=instruct, **options
                )
        finally:
            talker.generate, model.generate = talker_generate, generate
        return ReferenceRun(
            prompt_embeds=record["prompt"].numpy(),
            trailing=record["trailing"].numpy(),
            codes=record["codes"][0].numpy(),
            hidden=record["hidden"][0].float().numpy(),
            wav=np.asarray(wavs[0], dtype=np.float32),
        )

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Return float32 [N] of int64 codes [T, Q]: chunks of 300 frames after 25 of context."""
        wavs, _ = self.model.speech_tokenizer.decode(
            [{"audio_codes": torch.from_numpy(np.ascontiguousarray(codes))}]
        )
        return np.asarray(wavs[0], dtype=np.float32)
