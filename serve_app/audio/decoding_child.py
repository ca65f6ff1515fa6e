"""A process that decodes one recording with FFmpeg, and may break: `decoding` starts it.

    python -m serve_app.audio.decoding_child DEMUXER MAX_SECONDS < file > samples

Out come the sample rate (4 bytes, little-endian) and float32 samples, mono. It ends with 1 and a
line on stderr where the file is not fit, which continues a sentence that begins with the file.
"""

import io
import resource
import sys
from typing import Final

import av
import numpy as np
from av import logging
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition, Stream

_MEMORY_BYTES: Final = 2 << 30
_CPU_S: Final = 10
_MAX_STREAMS: Final = 8
# Of a clip of 30 s in the shortest packets of any codec here, a few times over.
_MAX_PACKETS: Final = 50_000
_MIN_HZ: Final = 8000
_MAX_HZ: Final = 192_000
_CODECS: Final = ("aac", "opus", "vorbis", "mp3", "mp3float", "flac", "alac")


class Unfit(Exception):
    """What is wrong with the file."""


def decoded(data: bytes, demuxer: str, max_s: float) -> tuple[int, np.ndarray]:
    """The rate, and float32 [N]: no more than a little over `max_s`.

    Raises:
        Unfit, FFmpegError, ValueError, IndexError
    """
    options = {"format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,aac"}
    with av.open(io.BytesIO(data), format=demuxer, options=options) as container:
        assert isinstance(container, InputContainer)
        if len(container.streams) > _MAX_STREAMS:
            raise Unfit(f"has more than {_MAX_STREAMS} tracks")
        if any(_is_moving_picture(stream) for stream in container.streams):
            raise Unfit("is a video; send its sound only")
        if not container.streams.audio:
            raise Unfit("has no audio")
        stream = container.streams.audio[0]
        codec, rate_hz = stream.codec_context, stream.codec_context.sample_rate
        if codec.name not in _CODECS:
            raise Unfit("has audio of a kind that is not taken")
        if not _MIN_HZ <= rate_hz <= _MAX_HZ:
            raise Unfit(f"is at {rate_hz} Hz; {_MIN_HZ} to {_MAX_HZ} Hz are taken")
        codec.thread_count = 1
        mono = av.AudioResampler(format="flt", layout="mono", rate=rate_hz)
        parts: list[np.ndarray] = []
        left = int(max_s * rate_hz) + 1
        for number, packet in enumerate(container.demux(stream)):
            if number >= _MAX_PACKETS:
                raise Unfit("has too many packets")
            for frame in packet.decode():
                if frame.sample_rate != rate_hz:
                    raise Unfit("changes its sample rate")
                for piece in mono.resample(frame):
                    samples = piece.to_ndarray()[0]
                    parts.append(samples)
                    left -= len(samples)
            if left <= 0:
                break
    return rate_hz, np.concatenate([np.zeros(0, np.float32), *parts])


def _is_moving_picture(stream: Stream) -> bool:
    """Covers of songs are pictures as well."""
    return stream.type == "video" and not stream.disposition & Disposition.attached_pic


def main() -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.set_level(logging.PANIC)
    try:
        rate_hz, samples = decoded(sys.stdin.buffer.read(), sys.argv[1], float(sys.argv[2]))
    except Unfit as error:
        print(error, file=sys.stderr)
        return 1
    except (FFmpegError, ValueError, IndexError, MemoryError):
        print("cannot be decoded: it is damaged, or no audio", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(rate_hz.to_bytes(4, "little") + samples.astype("<f4").tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
