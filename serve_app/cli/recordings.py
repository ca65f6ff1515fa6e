"""Recordings on their way to a server: a file, a part of one, or what a microphone hears."""

import importlib
import io
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Final

RATE_HZ: Final = 24000
# With the sample rate in braces; each goes on until it is ended.
PROGRAMS: Final = (
    ("arecord", "-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", "{rate}"),
    ("parec", "--raw", "--format=s16le", "--channels=1", "--rate={rate}"),
    ("rec", "-q", "-t", "raw", "-e", "signed", "-b", "16", "-c", "1", "-r", "{rate}", "-"),
)
_END_S: Final = 5.0


class CannotRecord(Exception):
    """This machine has nothing to record with, or it does not work."""


class Unfit(Exception):
    """Of this file no such part can be taken."""


def from_file(path: str, begin_s: float | None = None, end_s: float | None = None) -> bytes:
    """The file as it is, or a WAV file of what is between two times.

    Raises:
        OSError: it cannot be read.
        Unfit: it has nothing there, or cannot be decoded.
    """
    data = Path(path).read_bytes()
    if begin_s is None and end_s is None:
        return data
    from av.error import FFmpegError

    try:
        parts = list(samples(data))
    except (FFmpegError, IndexError) as error:
        raise Unfit(f"{path} cannot be cut: {error}") from error
    rate_hz = parts[0][0] if parts else RATE_HZ
    whole = b"".join(piece for _, piece in parts)
    begin = round((begin_s or 0.0) * rate_hz)
    end = None if end_s is None else round(end_s * rate_hz)
    cut = whole[2 * begin : None if end is None else 2 * end]
    if not cut:
        raise Unfit(f"{path} has nothing between these times")
    return wav_file(cut, rate_hz)


def from_microphone(seconds: float) -> bytes:
    """A WAV file of the next seconds, which somebody at the keyboard is told of.

    Raises:
        CannotRecord: nothing hears here.
    """
    size = 2 * round(seconds * RATE_HZ)
    print(f"recording for {seconds:g} s, speak now", file=sys.stderr, flush=True)
    try:
        module = importlib.import_module("sounddevice")
    except (ImportError, OSError):  # the module, or the library that it loads
        data = _by_program(size)
    else:
        try:
            with module.RawInputStream(RATE_HZ, channels=1, dtype="int16") as stream:
                data = bytes(stream.read(size // 2)[0])
        except module.PortAudioError as error:
            raise CannotRecord(f"the microphone does not work: {error}") from error
    print("recorded", file=sys.stderr, flush=True)
    return wav_file(data, RATE_HZ)


def samples(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Rate and bytes of the 16-bit mono samples of a recording."""
    import av

    with av.open(io.BytesIO(data), "r") as file:
        resampler = av.AudioResampler("s16", "mono")
        for frame in file.decode(audio=0):
            for part in resampler.resample(frame):
                yield part.sample_rate, bytes(part.planes[0])[: 2 * part.samples]


def wav_file(data: bytes, rate_hz: int) -> bytes:
    """16-bit mono samples as a file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate_hz, 0, "NONE", ""))
        out.writeframes(data)
    return file.getvalue()


def _by_program(size: int) -> bytes:
    there = [program for program in PROGRAMS if shutil.which(program[0])]
    if not there:
        names = ", ".join(program for program, *_ in PROGRAMS)
        raise CannotRecord(
            f"nothing to record with: pip install sounddevice, or install one of {names}"
        )
    command = [part.format(rate=RATE_HZ) for part in there[0]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        try:
            data = process.stdout.read(size)
        finally:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
    if len(data) < size:
        raise CannotRecord(f"{command[0]} ended after {len(data) / 2 / RATE_HZ:.1f} s")
    return data
