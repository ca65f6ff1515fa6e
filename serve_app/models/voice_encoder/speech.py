"""A recording to codec frames: transformers' Mimi encoder as the releases use it, in float32.

Source: Qwen3TTSTokenizerV2Model.encode() of QwenLM/Qwen3-TTS.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import MimiConfig, MimiModel

from serve_app.models.checkpoint.spec import SpeechEncoderSpec


class SpeechEncoder:
    """float32 [N] of 24 kHz to int64 [ceil(N / samples_per_frame), num_code_groups].

    One clip at a time: padding would change the last frame of the shorter ones.

    Args:
        spec: of the checkpoint.
        tensors: of the speech tokenizer, under `encoder.`.
        device: where it runs.
    """

    def __init__(
        self, spec: SpeechEncoderSpec, tensors: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self._spec = spec
        # The releases were made with all of the past in sight, whatever window the file states
        # (transformers 4.57 ignored it).
        whole = {"sliding_window": spec.mimi["max_position_embeddings"]}
        model: Any = MimiModel(MimiConfig(**{**spec.mimi, **whole}))
        model.decoder = model.decoder_transformer = model.upsample = None
        model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        self._model = model.eval().to(device)

    def __call__(self, samples: Tensor) -> Tensor:
        made = self._model.encode(
            samples[None, None], num_quantizers=self._spec.num_code_groups, return_dict=True
        )
        frames = -(-len(samples) // self._spec.samples_per_frame)
        return made.audio_codes[0, :, :frames].transpose(0, 1).long()
