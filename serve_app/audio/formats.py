"""The formats of a response: what each is called on the wire, and who makes its bytes.

A new format is a member of `AudioFormat` and an entry of the table below.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import BinaryIO, Final, Protocol

import numpy as np

from serve_app.audio.compressed import AAC, FLAC, MP3, OPUS, CompressedEncoder
from serve_app.audio.lame import LameEncoder
from serve_app.audio.wav import PcmEncoder, WavEncoder

# What a request may ask for; formats have these, or the next higher one.
SAMPLE_RATES_HZ: Final = (8000, 16000, 22050, 24000, 44100, 48000)


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
    """The values of `response_format`, OpenAI's."""

    MP3 = "mp3"
    OPUS = "opus"
    AAC = "aac"
    FLAC = "flac"
    WAV = "wav"
    PCM = "pcm"

    @property
    def cost(self) -> float:
        """About how long a core takes to encode a second of audio, in seconds."""
        return _FORMATS[self].cost

    def rate_hz(self, wanted_hz: int) -> int:
        """The sample rate to encode at: `wanted_hz`, or the next higher one of the format."""
        rates = _FORMATS[self].rates_hz
        return next((rate for rate in rates if rate >= wanted_hz), rates[-1])

    def content_type(self, sample_rate_hz: int) -> str:
        return _FORMATS[self].content_type.format(rate=sample_rate_hz)

    def encoder(
        self, sample_rate_hz: int, num_samples: int | None = None, file: BinaryIO | None = None
    ) -> Encoder:
        """The encoder of a file of `num_samples`, or of a stream whose length nobody knows yet.

        With `file`, which can seek, it may write there instead of giving all of it at the end.
        """
        return _FORMATS[self].encoder(sample_rate_hz, num_samples, file)


@dataclass(frozen=True, slots=True)
class _Format:
    """
    content_type: with `{rate}` for the sample rate.
    encoder: called with the sample rate and, for a file, the number of samples that will come and
        where it may be written.
    rates_hz: the sample rates there are, ascending.
    """

    content_type: str
    encoder: Callable[[int, int | None, BinaryIO | None], Encoder]
    rates_hz: tuple[int, ...] = SAMPLE_RATES_HZ
    cost: float = 0.0


def _mp3(
    sample_rate_hz: int, num_samples: int | None = None, file: BinaryIO | None = None
) -> Encoder:
    if num_samples is None:
        return LameEncoder(sample_rate_hz)
    return CompressedEncoder(MP3, sample_rate_hz, num_samples, file)


_FORMATS: Final[Mapping[AudioFormat, _Format]] = {
    AudioFormat.MP3: _Format("audio/mpeg", _mp3, cost=0.0011),
    AudioFormat.OPUS: _Format(
        "audio/ogg; codecs=opus",
        partial(CompressedEncoder, OPUS),
        rates_hz=(8000, 16000, 24000, 48000),
        cost=0.0028,
    ),
    AudioFormat.AAC: _Format("audio/aac", partial(CompressedEncoder, AAC), cost=0.002),
    AudioFormat.FLAC: _Format("audio/flac", partial(CompressedEncoder, FLAC), cost=0.0006),
    AudioFormat.WAV: _Format("audio/wav", WavEncoder),
    AudioFormat.PCM: _Format("audio/pcm;rate={rate};channels=1", PcmEncoder),
}
