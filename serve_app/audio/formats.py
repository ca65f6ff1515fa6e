"""The formats of a response: what each is called on the wire, and who makes its bytes.

A new format is a member of `AudioFormat` and an entry of the table below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

import numpy as np

from serve_app.audio.wav import PcmEncoder, WavEncoder


class Encoder(Protocol):
    """The bytes of one stream or file. The header of a container comes with the first samples, so
    that the first bytes of a response can be played.
    """

    def encode(self, samples: np.ndarray) -> bytes:
        """Take the next samples, int16 [N]; what comes back may be empty."""
        ...

    def finish(self) -> bytes:
        """What is left after the last samples."""
        ...


class AudioFormat(StrEnum):
    """The values of `response_format` that are served; OpenAI's other four are not there yet."""

    WAV = "wav"
    PCM = "pcm"

    def content_type(self, sample_rate_hz: int) -> str:
        return _FORMATS[self].content_type.format(rate=sample_rate_hz)

    def encoder(self, sample_rate_hz: int, num_samples: int | None = None) -> Encoder:
        """The encoder of a file of `num_samples`, or of a stream whose length nobody knows yet."""
        return _FORMATS[self].encoder(sample_rate_hz, num_samples)


@dataclass(frozen=True, slots=True)
class _Format:
    """
    content_type: with `{rate}` for the sample rate.
    encoder: called with the sample rate and, for a file, the number of samples that will come.
    """

    content_type: str
    encoder: Callable[[int, int | None], Encoder]


_FORMATS: Final[Mapping[AudioFormat, _Format]] = {
    AudioFormat.WAV: _Format("audio/wav", WavEncoder),
    AudioFormat.PCM: _Format("audio/pcm;rate={rate};channels=1", PcmEncoder),
}


def encode_file(samples: np.ndarray, audio_format: AudioFormat, sample_rate_hz: int) -> bytes:
    """A complete file of int16 [N], with exact sizes in its header."""
    encoder = audio_format.encoder(sample_rate_hz, len(samples))
    return encoder.encode(samples) + encoder.finish()
