"""MP3, Opus, AAC and FLAC through FFmpeg's encoders (PyAV), the bytes as soon as they exist.

Each call of FFmpeg gives Python's lock away and waits to get it back, behind the other encoders of
the process; so what makes fewer calls makes more audio.

The settings are those with which the first packet leaves early; their tests state for each codec
after how many samples. A stream is written to something that can only be appended to, so nothing
in it is ever patched; a file is, and states its exact length.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Final, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer

from serve_app.audio.frames import pcm_frame
from serve_app.audio.provenance import TAGS

_KILO: Final = 1000


@dataclass(frozen=True, slots=True)
class Codec:
    """One of FFmpeg's encoders and the container around it.

    Attributes:
        bit_rate_per_hz: bits per second for each Hz of the sample rate, up to `max_bit_rate`.
        stream_options: of the container, for a stream; `file_options` for a file.
        tagged_streams: a stream begins with the container's tags.
    """

    encoder: str
    container: str
    options: Mapping[str, str] = field(default_factory=dict)
    bit_rate_per_hz: int | None = None
    max_bit_rate: int = 96 * _KILO
    stream_options: Mapping[str, str] = field(default_factory=dict)
    file_options: Mapping[str, str] = field(default_factory=dict)
    tagged_streams: bool = True

    def bit_rate(self, sample_rate_hz: int) -> int | None:
        """Bits per second; None: as the encoder likes."""
        if self.bit_rate_per_hz is None:
            return None
        return min(self.bit_rate_per_hz * sample_rate_hz, self.max_bit_rate)


MP3: Final = Codec(
    "libmp3lame",
    "mp3",
    # Without the bit reservoir a frame can be played when it is there, without the next ones.
    options={"reservoir": "0", "compression_level": "7"},
    bit_rate_per_hz=4,
    tagged_streams=False,
)
OPUS: Final = Codec(
    "libopus",
    "ogg",
    # From complexity 7 on libopus analyses what it hears, in twice the time that coding takes, and
    # what it then chooses for speech is further from the input (docs/decisions/0011).
    options={"application": "audio", "compression_level": "6"},
    bit_rate_per_hz=2,
    max_bit_rate=64 * _KILO,
    # A page for each packet, in microseconds; by default the first one leaves after a second.
    stream_options={"page_duration": "20000"},
)
AAC: Final = Codec(
    "aac",
    "adts",
    options={"aac_coder": "fast"},
    bit_rate_per_hz=4,
    tagged_streams=False,
)
FLAC: Final = Codec(
    "flac",
    "flac",
    options={"compression_level": "0"},
    stream_options={"metadata_header_padding": "0"},
    file_options={"metadata_header_padding": "0"},
)


class CompressedEncoder:
    """A stream of int16 samples, or with `num_samples` a file, which is written to `file` or,
    without one, given by `finish` as a whole.
    """

    def __init__(
        self,
        codec: Codec,
        sample_rate_hz: int,
        num_samples: int | None = None,
        file: BinaryIO | None = None,
    ) -> None:
        to_file = num_samples is not None
        self._whole = io.BytesIO() if to_file and file is None else None
        self._sink = file or self._whole or _Appended()
        options = codec.file_options if to_file else codec.stream_options
        output = av.open(self._sink, "w", format=codec.container, container_options=dict(options))
        self._container = cast(OutputContainer, output)
        if to_file or codec.tagged_streams:
            self._container.metadata.update(TAGS)
        self._stream = cast(
            AudioStream,
            self._container.add_stream(
                codec.encoder, rate=sample_rate_hz, options=dict(codec.options)
            ),
        )
        self._stream.layout = "mono"
        if (bit_rate := codec.bit_rate(sample_rate_hz)) is not None:
            self._stream.bit_rate = bit_rate
        # Now, while the first samples are still being made, and not when they wait for it.
        self._stream.codec_context.open()
        self._sample_rate_hz = sample_rate_hz
        self._taken = 0

    def encode(self, samples: np.ndarray) -> bytes:
        """Take int16 [N]; the bytes that are ready, none while a file is made."""
        if len(samples):
            frame = pcm_frame(samples, self._sample_rate_hz, self._taken)
            self._taken += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._take()

    def finish(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._take() if self._whole is None else self._whole.getvalue()

    def __del__(self) -> None:
        # PyAV's container and stream hold each other. Closed they do not, so that a stream that its
        # client has left gives its megabytes back now and not when Python looks for cycles.
        container = getattr(self, "_container", None)
        if container is not None:
            container.close()

    def _take(self) -> bytes:
        return self._sink.take() if isinstance(self._sink, _Appended) else b""


class _Appended:
    """What a container writes, until it is taken; it cannot seek, so FFmpeg never goes back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data
