"""PCM samples to the bytes of a response: 16-bit little-endian PCM, bare or in a WAV container.

An encoder belongs to one stream: `encode` takes the samples of each chunk in order, `finish` gives
what is left. The header of a container comes with the first samples, so the first bytes of a
response can be played.
"""

import struct
from enum import StrEnum
from typing import Final, Protocol

import numpy as np

_BYTES_PER_SAMPLE: Final = 2
# Stands for "unknown length" in a WAV header, as OpenAI sends it: readers take the rest of the
# stream. A 0 instead is refused or read as silence by the common readers.
_UNKNOWN_SIZE: Final = 0xFFFFFFFF
_WAV_HEADER: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")


class AudioFormat(StrEnum):
    """The values of `response_format` that are served; OpenAI's other four are not there yet."""

    WAV = "wav"
    PCM = "pcm"

    def content_type(self, sample_rate_hz: int) -> str:
        if self is AudioFormat.PCM:
            return f"audio/pcm;rate={sample_rate_hz};channels=1"
        return "audio/wav"


class Encoder(Protocol):
    def encode(self, samples: np.ndarray) -> bytes:
        """Encode int16 [N]; may return nothing yet."""
        ...

    def finish(self) -> bytes: ...


class PcmEncoder:
    """Bare samples, little-endian on every host."""

    def encode(self, samples: np.ndarray) -> bytes:
        return samples.astype("<i2", copy=False).tobytes()

    def finish(self) -> bytes:
        return b""


class WavEncoder:
    """The samples behind a header, which states `num_samples` or, for None, an unknown length."""

    def __init__(self, sample_rate_hz: int, num_samples: int | None = None) -> None:
        self._header = wav_header(sample_rate_hz, num_samples)
        self._pcm = PcmEncoder()

    def encode(self, samples: np.ndarray) -> bytes:
        return self._take_header() + self._pcm.encode(samples)

    def finish(self) -> bytes:
        return self._take_header()

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header


def stream_encoder(audio_format: AudioFormat, sample_rate_hz: int) -> Encoder:
    """The encoder of a stream whose length is not known yet."""
    return PcmEncoder() if audio_format is AudioFormat.PCM else WavEncoder(sample_rate_hz)


def encode_file(samples: np.ndarray, audio_format: AudioFormat, sample_rate_hz: int) -> bytes:
    """A complete file of int16 [N], with exact sizes in its header."""
    if audio_format is AudioFormat.PCM:
        return PcmEncoder().encode(samples)
    return WavEncoder(sample_rate_hz, len(samples)).encode(samples)


def wav_header(sample_rate_hz: int, num_samples: int | None = None) -> bytes:
    """The 44 bytes before the samples of a mono 16-bit WAV file: RIFF, fmt, data, nothing else."""
    num_bytes = None if num_samples is None else num_samples * _BYTES_PER_SAMPLE
    return _WAV_HEADER.pack(
        b"RIFF",
        _UNKNOWN_SIZE if num_bytes is None else _WAV_HEADER.size - 8 + num_bytes,
        b"WAVE",
        b"fmt ",
        16,  # bytes in this section
        1,  # PCM
        1,  # channel
        sample_rate_hz,
        sample_rate_hz * _BYTES_PER_SAMPLE,
        _BYTES_PER_SAMPLE,
        8 * _BYTES_PER_SAMPLE,
        b"data",
        _UNKNOWN_SIZE if num_bytes is None else num_bytes,
    )
