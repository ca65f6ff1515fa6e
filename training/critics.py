"""The critics of adversarial training; none of them is part of a checkpoint.

Two kinds: some fold the waveform by a period and look at it as an image (pitch, buzz), the others
look at the complex short-time spectrum (everything else). Some of each hear only what lies below
3 kHz, where the voice's harmonics are: of the two halves of the spectrum it is the lower one whose
faults are heard. Beside them a listener learns to tell the phonemes of real speech; what is made
must sound the same to it, since a consonant is a small part of any spectrum.
"""

from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from training.corpus import FRAME_SAMPLES, NUM_LABELS, SLOTS
from training.losses import mel_filters

_PERIODS: Final = (2, 5, 11)
_WINDOWS: Final = (2048, 1024, 512)
_LOW_PERIODS: Final = (2, 3, 5, 7)
_LOW_WINDOWS: Final = (512, 256)
_LOWER: Final = 4
"""How much lower the sampling rate of the low band is."""
_TAPS: Final = 64 * _LOWER + 1
_SLOPE: Final = 0.1


class PeriodCritic(nn.Module):
    """Folds [B, N] samples into [B, 1, N / period, period]."""

    def __init__(self, period: int, width: int) -> None:
        super().__init__()
        self.period = period
        channels = (1, width, 2 * width, 4 * width, 8 * width)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (3, 1), (2, 0))) for a, b in pairwise(channels)
        )
        self.verdict = weight_norm(nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Return the features of each layer and, last, the verdict."""
        x = F.pad(wave, (0, -wave.shape[-1] % self.period))
        x = x.view(len(x), 1, -1, self.period)
        features: list[Tensor] = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return [*features, self.verdict(x)]


class SpectrumCritic(nn.Module):
    """Looks at real and imaginary part of the short-time spectrum."""

    def __init__(self, window: int, width: int) -> None:
        super().__init__()
        self.window = window
        steps = ((1, 1), (1, 2), (1, 2), (1, 2), (1, 1))
        channels = (2, width, width, width, width, width)
        self.layers = nn.ModuleList(
            weight_norm(
                nn.Conv2d(
                    a, b, (3, 9 if step[1] == 2 else 3), step, "same" if step == (1, 1) else (1, 4)
                )
            )
            for a, b, step in zip(channels, channels[1:], steps, strict=False)
        )
        self.verdict = weight_norm(nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Return the features of each layer and, last, the verdict."""
        with torch.autocast(wave.device.type, enabled=False):
            shape = torch.hann_window(self.window, device=wave.device)
            spectrum = torch.stft(
                wave.float(), self.window, self.window // 4, window=shape, return_complex=True
            )
            x = torch.view_as_real(spectrum).permute(0, 3, 2, 1) / self.window**0.5
        features: list[Tensor] = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), _SLOPE)
            features.append(x)
        return [*features, self.verdict(x)]


class Listener(nn.Module):
    """Tells the phoneme of each 20 ms of [B, frames * 1920] samples."""

    def __init__(self, width: int = 128, layers: int = 4) -> None:
        super().__init__()
        self.hop = FRAME_SAMPLES // SLOTS // 2
        self.window, self.bands = 4 * self.hop, 80
        channels = (self.bands, *[width] * layers)
        self.layers = nn.ModuleList(
            nn.Conv1d(a, b, 5, stride=2 if i == layers - 1 else 1, padding=2)
            for i, (a, b) in enumerate(pairwise(channels))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for _ in range(layers))
        self.verdict = nn.Conv1d(width, NUM_LABELS, 1)

    def forward(self, wave: Tensor) -> list[Tensor]:
        """Return the features of each layer and, last, the scores [B, phonemes, frames * 4]."""
        with torch.autocast(wave.device.type, enabled=False):
            shape = torch.hann_window(self.window, device=wave.device)
            # A window's middle lies in the middle of its 10 ms.
            beyond = (self.window - self.hop) // 2
            spectrum = torch.stft(
                F.pad(wave.float(), (beyond, beyond)),
                self.window,
                self.hop,
                window=shape,
                center=False,
                return_complex=True,
            )
            power = spectrum.real.square() + spectrum.imag.square()
            filters = mel_filters(self.window, self.bands, wave.device)
            x = (filters.T @ (power / shape.square().sum() + 1e-10).sqrt() + 3e-4).log()
            x = (x + 5.0) / 2.0
        features: list[Tensor] = []
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.leaky_relu(norm(layer(x)), _SLOPE)
            features.append(x)
        return [*features, self.verdict(x)]


class Critics(nn.Module):
    """All critics; `width` channels in the first layer of each."""

    taps: Tensor

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            [PeriodCritic(p, width) for p in _PERIODS]
            + [SpectrumCritic(w, width) for w in _WINDOWS]
        )
        self.low_members = nn.ModuleList(
            [PeriodCritic(p, width) for p in _LOW_PERIODS]
            + [SpectrumCritic(w, width) for w in _LOW_WINDOWS]
        )
        self.listener = Listener()
        place = (torch.arange(_TAPS) - _TAPS // 2) / _LOWER
        taps = torch.sinc(place) * torch.hann_window(_TAPS, periodic=False) / _LOWER
        self.register_buffer("taps", taps.view(1, 1, -1), persistent=False)

    def low(self, wave: Tensor) -> Tensor:
        """Return what lies below 3 kHz of [B, N] samples, at a quarter of the rate."""
        return F.conv1d(wave[:, None], self.taps, stride=_LOWER, padding=_TAPS // 2)[:, 0]

    def forward(self, wave: Tensor) -> list[list[Tensor]]:
        """Return what each critic finds in [B, N] samples."""
        with torch.autocast(wave.device.type, enabled=False):
            low = self.low(wave.float())
        return [
            *(critic(wave) for critic in self.members),
            *(critic(low) for critic in self.low_members),
        ]
