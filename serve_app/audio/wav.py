"""16-bit little-endian PCM, bare or in a WAV container."""

import struct
from typing import BinaryIO, Final

import numpy as np

from serve_app.audio.provenance import TAGS

_BYTES_PER_SAMPLE: Final = 2
# Stands for "unknown length" in a WAV header, as OpenAI sends it: readers take the rest of the
# stream. A 0 instead is refused or read as silence by the common readers.
_UNKNOWN_SIZE: Final = 0xFFFFFFFF
_WAV_HEADER: Final = struct.Struct("<4sI4s4sIHHIIHH4sI")


class PcmEncoder:
    """Bare samples, little-endian on every host."""

    def __init__(
        self, sample_rate_hz: int, num_samples: int | None = None, file: BinaryIO | None = None
    ) -> None:
        del sample_rate_hz, num_samples, file  # nothing states them, nothing has to be patched

    def encode(self, samples: np.ndarray) -> bytes:
        return samples.astype("<i2", copy=False).tobytes()

    def finish(self) -> bytes:
        return b""


class WavEncoder:
    """The samples behind a header, which states `num_samples` or, for None, an unknown length.

    A file ends with its tags: readers that take all behind the header for samples would hear
    them at the beginning.
    """

    def __init__(
        self, sample_rate_hz: int, num_samples: int | None = None, file: BinaryIO | None = None
    ) -> None:
        del file  # nothing has to be patched
        self._tags = b"" if num_samples is None else _tags()
        self._header = wav_header(sample_rate_hz, num_samples, len(self._tags))
        self._pcm = PcmEncoder(sample_rate_hz)

    def encode(self, samples: np.ndarray) -> bytes:
        return self._take_header() + self._pcm.encode(samples)

    def finish(self) -> bytes:
        return self._take_header() + self._tags

    def _take_header(self) -> bytes:
        header, self._header = self._header, b""
        return header


def _tags() -> bytes:
    """A LIST chunk with the comment that a machine made this."""
    comment = TAGS["comment"].encode() + b"\0"
    comment += b"\0" * (len(comment) % 2)
    info = b"INFOICMT" + len(comment).to_bytes(4, "little") + comment
    return b"LIST" + len(info).to_bytes(4, "little") + info


def wav_header(
    sample_rate_hz: int, num_samples: int | None = None, num_bytes_after: int = 0
) -> bytes:
    """The 44 bytes before the samples of a mono 16-bit WAV file: RIFF, fmt, data, nothing else.

    `num_bytes_after` is the size of the chunks that follow the samples. Samples of more than 4 GB
    have no size that a header can state, and are of unknown length.
    """
    num_bytes = None if num_samples is None else num_samples * _BYTES_PER_SAMPLE
    if num_bytes is not None and num_bytes + num_bytes_after + _WAV_HEADER.size > _UNKNOWN_SIZE:
        num_bytes = None
    return _WAV_HEADER.pack(
        b"RIFF",
        _UNKNOWN_SIZE if num_bytes is None else _WAV_HEADER.size - 8 + num_bytes + num_bytes_after,
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
