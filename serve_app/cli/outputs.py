"""Where audio goes: the loudspeakers, a file, or standard output."""

import importlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

_WAV_HEADER_BYTES: Final = 44
_UNKNOWN: Final = 0xFFFFFFFF


class CannotPlay(Exception):
    """This machine has nothing to play audio with, or it does not work."""


class Output(Protocol):
    """Takes the audio of one answer after the other."""

    def begin(self, rate_hz: int) -> None:
        """Before each piece, with its sample rate."""
        ...

    def write(self, data: bytes) -> None: ...

    def finish(self) -> str | None:
        """All of it came: returns once it was heard, or what to say of where it is."""
        ...

    def abort(self) -> str | None:
        """It is not going to be complete: returns at once, perhaps with what is left of it."""
        ...


class File:
    """A file, under its name only when it is complete; before, `.part` is added to it.

    A pipe or a device of this name is written to as it is: it must not be replaced.
    """

    def __init__(self, path: str, with_header: bool) -> None:
        self._path = Path(path)
        self._is_special = self._path.exists() and not self._path.is_file()
        self._part = self._path
        if not self._is_special:
            self._part = self._path.with_name(f"{self._path.name}.part")
        self._wav = with_header
        self._file: BinaryIO | None = None

    def begin(self, rate_hz: int) -> None:
        if self._file is None:
            self._file = self._part.open("wb")
            if self._wav:
                self._file.write(wav_header(rate_hz))

    def write(self, data: bytes) -> None:
        assert self._file is not None
        self._file.write(data)

    def finish(self) -> str | None:
        if self._file is None:
            return None
        self._close()
        if self._is_special:
            return None
        os.replace(self._part, self._path)
        return str(self._path)

    def abort(self) -> str | None:
        if self._file is None:
            return None
        self._close()
        return None if self._is_special else f"what came is in {self._part}"

    def _close(self) -> None:
        assert self._file is not None
        if self._wav and self._file.seekable():
            size = self._file.tell()
            self._file.seek(4)
            self._file.write(struct.pack("<I", size - 8))
            self._file.seek(_WAV_HEADER_BYTES - 4)
            self._file.write(struct.pack("<I", size - _WAV_HEADER_BYTES))
        self._file.close()


def check_place(path: str) -> None:
    """
    Raises:
        OSError: a file of this name cannot be made.
    """
    place = Path(path)
    if place.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    if not place.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {place.parent}")
    if not os.access(place.parent, os.W_OK):
        raise PermissionError(f"the folder {place.parent} is not writable")


class Stdout:
    def __init__(self, with_header: bool) -> None:
        self._wav = with_header

    def begin(self, rate_hz: int) -> None:
        if self._wav:
            sys.stdout.buffer.write(wav_header(rate_hz))
            self._wav = False

    def write(self, data: bytes) -> None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def finish(self) -> str | None:
        return None

    def abort(self) -> str | None:
        return None


class SoundDevice:
    """The default output of PortAudio."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._stream: Any = None
        self._rate_hz = 0
        self._rest = b""  # half a sample, where a piece ended in the middle of one

    def begin(self, rate_hz: int) -> None:
        if rate_hz == self._rate_hz:
            return
        self.finish()
        try:
            self._stream = self._module.RawOutputStream(rate_hz, channels=1, dtype="int16")
            self._stream.start()
        except self._module.PortAudioError as error:
            raise CannotPlay(f"the sound device does not work: {error}") from error
        self._rate_hz = rate_hz

    def write(self, data: bytes) -> None:
        data = self._rest + data
        whole = len(data) // 2 * 2
        self._rest = data[whole:]
        self._stream.write(data[:whole])

    def finish(self) -> str | None:
        if self._stream is not None:
            self._stream.stop()  # waits for what is in its buffer
            self._stream.close()
        return None

    def abort(self) -> str | None:
        if self._stream is not None:
            self._stream.abort()
            self._stream.close()
        return None


class Program:
    """A program that plays raw samples from its standard input."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        self._rate_hz = 0

    def begin(self, rate_hz: int) -> None:
        if rate_hz == self._rate_hz:
            return
        self.finish()
        command = [part.format(rate=rate_hz) for part in self._command]
        # A session of its own: Ctrl-C is for us, who then end it.
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        self._rate_hz = rate_hz

    def write(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise CannotPlay(f"{self._command[0]} ended with {self._process.wait()}") from error

    def finish(self) -> str | None:
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            if self._process.wait():
                raise CannotPlay(f"{self._command[0]} ended with {self._process.returncode}")
        return None

    def abort(self) -> str | None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        return None


class AfterwardsPlayer:
    """A program that plays files only: hears all of it at the end (macOS has no other)."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._folder = tempfile.TemporaryDirectory(prefix="tts-stream-")
        self._file = File(str(Path(self._folder.name) / "speech.wav"), with_header=True)

    def begin(self, rate_hz: int) -> None:
        self._file.begin(rate_hz)

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def finish(self) -> str | None:
        with self._folder:
            path = self._file.finish()
            if path and subprocess.run([self._program, path], check=False).returncode:
                raise CannotPlay(f"{self._program} failed")
        return None

    def abort(self) -> str | None:
        self._folder.cleanup()
        return None


# With the sample rate in braces.
PROGRAMS: Final = (
    ("aplay", "-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", "{rate}", "-"),
    ("pacat", "--playback", "--raw", "--format=s16le", "--channels=1", "--rate={rate}"),
    ("play", "-q", "-t", "raw", "-e", "signed", "-b", "16", "-c", "1", "-r", "{rate}", "-"),
    (
        *("ffplay", "-nodisp", "-autoexit", "-loglevel", "error"),
        *("-f", "s16le", "-ar", "{rate}", "-i", "-"),
    ),
)


def speakers() -> Output:
    """The first way to play that this machine has.

    Raises:
        CannotPlay: there is none.
    """
    try:
        return SoundDevice(importlib.import_module("sounddevice"))
    except (ImportError, OSError):  # the module, or the library that it loads
        pass
    for program, *arguments in PROGRAMS:
        if shutil.which(program):
            return Program([program, *arguments])
    if shutil.which("afplay"):
        return AfterwardsPlayer("afplay")
    names = ", ".join([*(program for program, *_ in PROGRAMS), "afplay"])
    raise CannotPlay(
        f"nothing to play audio with: pip install sounddevice, or install one of {names};"
        " or write a file with --output"
    )


def wav_header(rate_hz: int) -> bytes:
    """Of 16-bit mono samples, whose number is not known yet."""
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", _UNKNOWN, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16),
        *(b"data", _UNKNOWN),
    )
