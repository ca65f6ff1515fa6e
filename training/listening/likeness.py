"""How much two clips sound like one voice, by the encoder that the package resemblyzer ships.

Above 0.8 on the same sentence is the same voice (measured with the teacher's).
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch

from training.listening.recogniser import RATE_HZ

_BANDS, _WINDOW, _HOP, _WIDTH = 40, 400, 160, 256
_PART: Final = 160  # rows of a part; parts overlap by half
_LEVEL: Final = 10 ** (-30 / 20)
_SILENT: Final = 0.01


def shipped_encoder() -> Path | None:
    """Return the weights of the installed package resemblyzer; None where there are none."""
    spec = find_spec("resemblyzer")
    for place in spec.submodule_search_locations or () if spec else ():
        file = Path(place, "pretrained.pt")
        if file.is_file():
            return file
    return None


def _mel_filters() -> np.ndarray:
    """Triangles of equal area on Slaney's mel scale: float64 [40, 201]."""

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))

    top = 15 + 27 * np.log(RATE_HZ / 2 / 1000) / np.log(6.4)
    centre = hertz(np.linspace(0, top, _BANDS + 2))
    bins = np.linspace(0, RATE_HZ / 2, _WINDOW // 2 + 1)
    up = (bins - centre[:-2, None]) / np.diff(centre)[:-1, None]
    down = (centre[2:, None] - bins) / np.diff(centre)[1:, None]
    area = (2 / (centre[2:] - centre[:-2]))[:, None]
    return np.maximum(0, np.minimum(up, down)) * area


def embedder(weights: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes float32 [256], of length 1, of a clip at 16 kHz."""
    # An old file, which the safe reader does not know; it comes from the package index.
    state = torch.load(weights, map_location="cpu", weights_only=False)["model_state"]
    lstm = torch.nn.LSTM(_BANDS, _WIDTH, 3, batch_first=True)
    linear = torch.nn.Linear(_WIDTH, _WIDTH)
    for module, prefix in ((lstm, "lstm."), (linear, "linear.")):
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    filters, window = _mel_filters(), np.hanning(_WINDOW + 1)[:-1]

    @torch.inference_mode()
    def embed(samples: np.ndarray) -> np.ndarray:
        loud = np.flatnonzero(np.abs(samples) > _SILENT)
        heard = samples[loud[0] : loud[-1] + 1] if loud.size else np.zeros(_PART, np.float32)
        heard = heard * (_LEVEL / max(float(np.sqrt(np.mean(heard**2))), 1e-6))
        least = _PART * _HOP
        if len(heard) < least:
            heard = np.tile(heard, least // len(heard) + 1)
        padded = np.pad(heard, _WINDOW // 2)
        rows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
        mel = (np.abs(np.fft.rfft(rows * window)) ** 2 @ filters.T).astype(np.float32)
        parts = [mel[at : at + _PART] for at in range(0, max(1, len(mel) - _PART + 1), _PART // 2)]
        _, (hidden, _) = lstm(torch.from_numpy(np.stack([p for p in parts if len(p) == _PART])))
        each = torch.nn.functional.normalize(torch.relu(linear(hidden[-1])), dim=1)
        return torch.nn.functional.normalize(each.mean(0), dim=0).numpy()

    return embed
