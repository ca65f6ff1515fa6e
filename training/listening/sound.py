"""Clips: reading them, their pitch, and how a network of the DNSMOS challenge rates them."""

from collections.abc import Callable
from importlib.util import find_spec
from math import gcd
from pathlib import Path
from typing import Any, Final

import numpy as np
import soundfile

from training.listening.recogniser import RATE_HZ

_LOUD: Final = 0.01  # of full scale
_WINDOW_S, _HOP_S = 0.064, 0.01
_APERIODIC: Final = 0.15
_CLIP_S: Final = 9.01
# The network's outputs of signal, background and overall, each with its published calibration.
_OVERALL: Final = (2, (-0.06766283, 1.11546468, 0.04602535))


def load(file: Path) -> np.ndarray:
    """Return float32 [N], mono at 16 kHz."""
    from scipy.signal import resample_poly

    samples, rate_hz = soundfile.read(file, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if rate_hz != RATE_HZ and len(mono):
        common = gcd(RATE_HZ, rate_hz)
        mono = resample_poly(mono, RATE_HZ // common, rate_hz // common)
    return np.asarray(mono, np.float32)


def voiced_s(samples: np.ndarray) -> float:
    """Return the seconds from the first to the last sample that is not silence."""
    loud = np.flatnonzero(np.abs(samples) > _LOUD)
    return float(loud[-1] - loud[0] + 1) / RATE_HZ if loud.size else 0.0


def pitch_hz(samples: np.ndarray, low: float = 60.0, high: float = 450.0) -> float | None:
    """Return the median F0 of the voiced windows (YIN); None where none is voiced."""
    size, hop = int(_WINDOW_S * RATE_HZ), int(_HOP_S * RATE_HZ)
    longest, shortest = int(RATE_HZ / low), int(RATE_HZ / high)
    quiet = 0.05 * float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0
    found: list[float] = []
    lags = np.arange(1, longest + 1)
    length = 1 << (2 * size + longest - 1).bit_length()
    for start in range(0, len(samples) - size - longest, hop):
        span = samples[start : start + size + longest].astype(np.float64)
        head = span[:size]
        if np.sqrt(np.mean(head**2)) <= quiet:
            continue
        spectrum = np.fft.rfft(span, length) * np.conj(np.fft.rfft(head, length))
        alike = np.fft.irfft(spectrum, length)[1 : longest + 1]
        power = np.concatenate(([0.0], np.cumsum(span**2)))
        differing = power[size] + power[size + lags] - power[lags] - 2 * alike
        normal = differing * lags / np.maximum(np.cumsum(differing), 1e-12)
        under = np.flatnonzero(normal[shortest - 1 :] < _APERIODIC)
        if not under.size:
            continue
        at = shortest - 1 + int(under[0])
        while at + 1 < longest and normal[at + 1] < normal[at]:
            at += 1
        found.append(RATE_HZ / (at + 1))
    return float(np.median(found)) if found else None


def shipped_rater() -> Path | None:
    """Return the network of the installed package speechmos; None where there is none."""
    spec = find_spec("speechmos")
    for place in spec.submodule_search_locations or () if spec else ():
        file = Path(place, "dnsmos_models/sig_bak_ovr.onnx")
        if file.is_file():
            return file
    return None


def rater(file: Path) -> Callable[[np.ndarray], float]:
    """Return what rates a clip at 16 kHz from 1 to 5 (DNSMOS P.835, overall)."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    size = int(_CLIP_S * RATE_HZ)
    output, calibration = _OVERALL

    def rate(samples: np.ndarray) -> float:
        if not len(samples):
            return 1.0
        whole = np.tile(samples, size // len(samples) + 1)[: max(size, len(samples))]
        starts = range(0, len(whole) - size + 1, RATE_HZ)
        raw = [_outputs(session, whole[start : start + size]) for start in starts]
        return float(np.polyval(calibration, np.mean(raw, axis=0)[output]))

    return rate


def _outputs(session: Any, samples: np.ndarray) -> np.ndarray:
    return np.asarray(session.run(None, {"input_1": samples[None]})[0])[0]
