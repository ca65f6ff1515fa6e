"""The mel spectrogram that the speaker encoder hears: that of 24 kHz vocoders, in float32.

Source: mel_spectrogram() of QwenLM/Qwen3-TTS.
"""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

_WINDOW: Final = 1024
_HOP: Final = 256
_HIGHEST_HZ: Final = 12000.0
_PADDING: Final = (_WINDOW - _HOP) // 2
# Inside the root, and of what the logarithm is taken.
_LEAST_POWER: Final = 1e-9
_LEAST: Final = 1e-5


class MelSpectrogram:
    """float32 [N] to [bands, frames], a frame for each 256 samples."""

    def __init__(self, num_bands: int, sample_rate_hz: int, device: torch.device) -> None:
        bank = mel_filter_bank(
            num_frequency_bins=_WINDOW // 2 + 1,
            num_mel_filters=num_bands,
            min_frequency=0.0,
            max_frequency=_HIGHEST_HZ,
            sampling_rate=sample_rate_hz,
            norm="slaney",
            mel_scale="slaney",
        )
        self._bank = torch.from_numpy(bank.T).float().contiguous().to(device)
        self._window = torch.hann_window(_WINDOW).to(device)

    def __call__(self, samples: Tensor) -> Tensor:
        padded = F.pad(samples[None, None], (_PADDING, _PADDING), mode="reflect")[0, 0]
        spectrum = torch.stft(
            padded, _WINDOW, _HOP, window=self._window, center=False, return_complex=True
        )
        magnitude = torch.sqrt(torch.view_as_real(spectrum).pow(2).sum(-1) + _LEAST_POWER)
        return torch.log(torch.clamp(self._bank @ magnitude, min=_LEAST))
