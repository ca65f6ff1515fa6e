"""How far a waveform is from the one wanted: spectra at several resolutions, critics' opinions."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

SAMPLE_RATE_HZ: Final = 24_000

# Window lengths in samples, and mel bands for each: short windows place clicks and onsets, long
# ones separate harmonics.
_WINDOWS: Final = (64, 128, 256, 512, 1024, 2048)
_BANDS: Final = (8, 16, 32, 64, 96, 128)
# Of amplitudes relative to full scale: what is 70 dB below it cannot be heard in speech, and
# the logarithm would otherwise make silence the hardest part.
_FLOOR: Final = 3e-4


def _mel_points(bands: int) -> Tensor:
    top = 2595.0 * torch.log10(torch.tensor(1 + SAMPLE_RATE_HZ / 2 / 700.0))
    return 700.0 * (10 ** (torch.linspace(0, float(top), bands + 2) / 2595.0) - 1)


@lru_cache(maxsize=32)
def mel_filters(window: int, bands: int, device: torch.device) -> Tensor:
    """Triangular filters on the mel scale: float32 [window / 2 + 1, bands]."""
    points = _mel_points(bands)
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, window // 2 + 1)[:, None]
    rising = (bins - points[:-2]) / (points[1:-1] - points[:-2])
    falling = (points[2:] - bins) / (points[2:] - points[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).to(device)


def magnitudes(wave: Tensor, window: int) -> Tensor:
    """Short-time spectrum of [B, N] samples, a quarter of a window apart: [B, frames, bins].

    White noise has its own root mean square in each bin, whatever the window.
    """
    shape = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave, window, window // 4, window=shape, return_complex=True)
    power = (spectrum.real.square() + spectrum.imag.square()) / shape.square().sum()
    return (power + 1e-10).sqrt().transpose(1, 2)


def spectral_distance(made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean distance of log mel spectra, and of linear ones, over all resolutions.

    Both waves are float32 [B, N].
    """
    mel, linear = made.new_zeros(()), made.new_zeros(())
    for window, bands in zip(_WINDOWS, _BANDS, strict=True):
        filters = mel_filters(window, bands, made.device)
        a, b = magnitudes(made, window), magnitudes(wanted, window)
        mel = mel + ((a @ filters + _FLOOR).log() - (b @ filters + _FLOOR).log()).abs().mean()
        if window >= 512:
            linear = linear + ((a - b).norm() / b.norm().clamp(min=1e-2))
            # Bin by bin, as a faint level line between harmonics is lost in a mel band; and the
            # band of the harmonics, a quarter of all bins, as much again.
            apart = ((a + _FLOOR).log() - (b + _FLOOR).log()).abs()
            linear = linear + 0.25 * (apart.mean() + apart[..., : window // 8].mean())
    return mel / len(_WINDOWS), linear / 3


# Long enough to tell the harmonics of a low voice apart, short enough for an onset.
_PHASE_WINDOWS: Final = (256, 512, 1024)
# How a spectrum's parts count by their amplitude: as loudness does, about.
_LOUDNESS: Final = 0.3


def phase_distance(made: Tensor, wanted: Tensor) -> Tensor:
    """How differently phases go on below 3 kHz, from frame to frame and from bin to bin: 0 to 2.

    Both waves are float32 [B, N]. Where every phase is off by the same angle nothing is said: codes
    do not hold it, and nobody hears it. As the losses of instantaneous frequency and group delay
    in APNet (arXiv:2305.07952), but of phasors instead of angles, which have no gradient to
    speak of where they wrap, and the louder a part is wanted, the more it counts.
    """
    total = made.new_zeros(())
    for window in _PHASE_WINDOWS:
        a, b = _low_spectrum(made, window), _low_spectrum(wanted, window)
        for axis in (1, 2):
            ours, theirs = _advance(a, axis), _advance(b, axis)
            weight = theirs.abs().pow(_LOUDNESS / 2)
            apart = torch.view_as_real(_phasors(ours) - _phasors(theirs)).square().sum(-1) / 2
            total = total + (weight * apart).sum() / weight.sum().clamp(min=1e-6)
    return total / (2 * len(_PHASE_WINDOWS))


def _low_spectrum(wave: Tensor, window: int) -> Tensor:
    """Complex short-time spectrum below 3 kHz, scaled as `magnitudes`: [B, bins, frames]."""
    shape = torch.hann_window(window, device=wave.device)
    spectrum = torch.stft(wave, window, window // 4, window=shape, return_complex=True)
    return spectrum[:, : window // 8] / shape.square().sum().sqrt()


def _advance(spectrum: Tensor, axis: int) -> Tensor:
    """What turns each bin towards the next along `axis`."""
    size = spectrum.shape[axis] - 1
    return spectrum.narrow(axis, 1, size) * spectrum.narrow(axis, 0, size).conj()


def _phasors(advance: Tensor) -> Tensor:
    """Of length one; shorter where there is hardly a sound."""
    parts = torch.view_as_real(advance)
    return advance / (parts.square().sum(-1) + _FLOOR**4).sqrt()


def critic_loss(of_real: Sequence[Sequence[Tensor]], of_made: Sequence[Sequence[Tensor]]) -> Tensor:
    """What critics minimise: least squares towards 1 for real and 0 for made speech."""
    total = of_real[0][-1].new_zeros(())
    for real, made in zip(of_real, of_made, strict=True):
        total = total + (1 - real[-1].float()).square().mean() + made[-1].float().square().mean()
    return total / len(of_real)


def persuasion(
    of_real: Sequence[Sequence[Tensor]], of_made: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """What the decoder minimises: critics taken in, and their inner features matched."""
    zero = of_real[0][-1].new_zeros(())
    adversarial, matching, count = zero, zero, 0
    for real, made in zip(of_real, of_made, strict=True):
        adversarial = adversarial + (1 - made[-1].float()).square().mean()
        for a, b in zip(real[:-1], made[:-1], strict=True):
            scale = a.float().abs().mean().clamp(min=1e-3)
            matching = matching + (a.detach().float() - b.float()).abs().mean() / scale.detach()
            count += 1
    return adversarial / len(of_real), matching / count


def mishearing(of_real: Sequence[Tensor], of_made: Sequence[Tensor]) -> Tensor:
    """How differently a listener hears made speech: its inner features, relative to their size."""
    total = of_real[0].new_zeros(())
    for a, b in zip(of_real[:-1], of_made[:-1], strict=True):
        scale = a.float().abs().mean().clamp(min=1e-3)
        total = total + (a.float() - b.float()).abs().mean() / scale
    return total / (len(of_real) - 1)
