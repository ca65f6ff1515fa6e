"""Signals to encode, and what to compare of what comes back."""

import io

import av
import numpy as np

RATE_HZ = 24000


def voice_like(num_samples, rate_hz=RATE_HZ, seed=0):
    """int16 [N]: harmonics of a gliding pitch under syllables, with some noise."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(num_samples) / rate_hz
    pitch_hz = 140 + 40 * np.sin(2 * np.pi * 0.7 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / rate_hz
    voiced = sum(np.sin(k * phase) / k for k in range(1, 12))
    syllables = 0.55 + 0.45 * np.sin(2 * np.pi * 3.1 * time_s)
    signal = voiced * syllables + 0.02 * rng.standard_normal(num_samples)
    return np.round(7000 * signal).astype(np.int16)


def tone(num_samples, rate_hz=RATE_HZ, pitch_hz=220.0):
    time_s = np.arange(num_samples) / rate_hz
    return np.round(9000 * np.sin(2 * np.pi * pitch_hz * time_s)).astype(np.int16)


def decoded(data, container=None):
    """float [N] in [-1, 1] and its sample rate, as FFmpeg reads `data`."""
    with av.open(io.BytesIO(data), format=container) as source:
        stream = source.streams.audio[0]
        to_float = av.AudioResampler(format="fltp", layout="mono")
        parts = [
            frame.to_ndarray()[0]
            for packet in source.decode(stream)
            for frame in to_float.resample(packet)
        ]
        return (np.concatenate(parts) if parts else np.zeros(0)), stream.rate


def tags(data):
    """The tags of the container and of its stream, by lower-case name."""
    with av.open(io.BytesIO(data)) as source:
        found = {**source.metadata, **source.streams.audio[0].metadata}
    return {name.lower(): value for name, value in found.items()}


def pitch(samples, rate_hz):
    """Hz of the strongest part of the middle of `samples`."""
    middle = samples[len(samples) // 4 : -(len(samples) // 4)]
    size = 1 << 18
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), size))
    return float(np.argmax(spectrum)) * rate_hz / size


def likeness(first, second, rate_hz, up_to_hz=3500.0):
    """Correlation of two signals' levels over time and frequency; 1 means alike."""
    size, hop = 1024, 512
    levels = []
    for samples in (first, second):
        windows = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
        spectrum = np.abs(np.fft.rfft(windows * np.hanning(size)))
        bands = spectrum[:, : int(up_to_hz * size / rate_hz)]
        levels.append(np.log(bands + 1e-2))
    length = min(map(len, levels))
    a, b = (level[:length].ravel() for level in levels)
    return float(np.corrcoef(a, b)[0, 1])


def delay(reference, samples, most=4000):
    """By how many samples `samples` come later than `reference`."""
    size = min(len(reference), len(samples), 48000)
    spectrum = np.fft.rfft(samples[:size], 2 * size) * np.conj(
        np.fft.rfft(reference[:size], 2 * size)
    )
    return int(np.argmax(np.fft.irfft(spectrum)[:most]))
