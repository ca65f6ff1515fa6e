"""Recordings made by a formula, no two of them alike."""

import numpy as np


def recording(length: int, seed: int = 0) -> np.ndarray:
    """float32 [length], 24 kHz: two tones that swell and fade, and some noise."""
    seconds = np.arange(length) / 24000
    tones = 0.4 * np.sin(2 * np.pi * (110 + 20 * seed) * seconds)
    tones += 0.2 * np.sin(2 * np.pi * (1300 - 70 * seed) * seconds)
    noise = np.random.default_rng(seed).standard_normal(length)
    return (tones * np.abs(np.sin(2 * np.pi * 1.7 * seconds)) + 0.02 * noise).astype(np.float32)
