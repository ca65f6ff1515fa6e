"""Samples for encoders: silence would cost them nothing."""

import numpy as np


def voice_like(seconds: float, rate_hz: int) -> np.ndarray:
    """int16 [N] of a hum with overtones that comes and goes, in some noise."""
    rng = np.random.default_rng(0)
    at_s = np.arange(round(seconds * rate_hz)) / rate_hz
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 0.7 * at_s)) / rate_hz
    hum = sum(np.sin(k * phase) / k for k in range(1, 30)) * (1 + np.sin(2 * np.pi * 3 * at_s))
    return (2500 * hum + 150 * rng.standard_normal(len(at_s))).astype(np.int16)
