"""Samples in the form that FFmpeg takes."""

from fractions import Fraction

import av
import numpy as np


def pcm_frame(samples: np.ndarray, sample_rate_hz: int, first_sample: int) -> av.AudioFrame:
    """FFmpeg's form of int16 [N], N >= 1."""
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples, dtype=np.int16)[None], format="s16", layout="mono"
    )
    frame.sample_rate = sample_rate_hz
    frame.time_base = Fraction(1, sample_rate_hz)
    frame.pts = first_sample
    return frame
