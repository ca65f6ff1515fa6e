"""Spectrograms of a sentence, the teacher's above the checkpoint's."""

from pathlib import Path
from typing import Final

import numpy as np

from training.listening.sound import RATE_HZ, load

_WINDOW, _HOP = 512, 128
_FLOOR_DB: Final = -80.0


def spectrogram_db(samples: np.ndarray) -> np.ndarray:
    """Return decibels below the loudest, [bins, columns]."""
    padded = np.pad(samples, (_WINDOW // 2, _WINDOW))
    rows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(rows * np.hanning(_WINDOW))) ** 2
    level = 10 * np.log10(np.maximum(power, 1e-12))
    return np.maximum(level - level.max(), _FLOOR_DB).T


def draw(clips: dict[str, Path], title: str, out: Path) -> None:
    """Write a picture of clips, one below the other, by their names; needs matplotlib."""
    from matplotlib.figure import Figure

    sounds = {name: load(file) for name, file in clips.items()}
    longest = max(len(samples) for samples in sounds.values()) / RATE_HZ
    figure = Figure(figsize=(10, 2.4 * len(sounds)), layout="constrained")
    axes = figure.subplots(len(sounds), 1, squeeze=False)[:, 0]
    for axis, (name, samples) in zip(axes, sounds.items(), strict=True):
        image = spectrogram_db(samples)
        extent = (0, len(samples) / RATE_HZ, 0, RATE_HZ / 2000)
        axis.imshow(image, origin="lower", aspect="auto", extent=extent, cmap="magma")
        axis.set(xlim=(0, longest), ylabel=f"{name}\nkHz")
    axes[0].set_title(title, fontsize=9)
    axes[-1].set_xlabel("s")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
