import os
import wave
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.cli.outputs import CannotPlay, File, SoundDevice, check_place, speakers, wav_header
from serve_app.cli.read_ahead import read_ahead


def test_a_file_has_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    file = File(str(path), with_header=True)
    for piece in (b"\1\2", b"\3\4\5\6"):
        file.begin(24000)
        file.write(piece)
    assert not path.exists()
    assert file.finish() == str(path)
    with wave.open(str(path)) as reader:
        assert reader.getparams()[:4] == (1, 2, 24000, 3)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_whole_can_be_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mp3"
    path.write_bytes(b"old")
    file = File(str(path), with_header=False)
    file.begin(24000)
    file.write(b"new")
    note = file.abort()
    assert note is not None
    assert "a.mp3.part" in note
    assert path.read_bytes() == b"old"
    assert (tmp_path / "a.mp3.part").read_bytes() == b"new"


def test_nothing_spoken_makes_no_file(tmp_path: Path) -> None:
    file = File(str(tmp_path / "a.mp3"), with_header=False)
    assert file.finish() is None
    assert list(tmp_path.iterdir()) == []


class Device:
    """As sounddevice, which refuses half samples."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        self.heard = b""
        self.calls: list[str] = []

    def RawOutputStream(self, rate_hz: int, *, channels: int, dtype: str) -> SimpleNamespace:
        if rate_hz == 1:
            raise self.PortAudioError("no device")
        assert (channels, dtype) == (1, "int16")

        def write(data: bytes) -> None:
            assert len(data) % 2 == 0
            self.heard += data

        calls = {name: lambda name=name: self.calls.append(name) for name in ("start", "stop")}
        close = {name: lambda name=name: self.calls.append(name) for name in ("abort", "close")}
        return SimpleNamespace(write=write, **calls, **close)


def test_a_sound_device_gets_whole_samples_and_is_waited_for() -> None:
    device = Device()
    output = SoundDevice(device)
    for piece in (b"a", b"bcd", b"ef"):
        output.begin(24000)
        output.write(piece)
    output.finish()
    assert device.heard == b"abcdef"
    assert device.calls == ["start", "stop", "close"]


def test_a_sound_device_stops_at_once_when_told() -> None:
    device = Device()
    output = SoundDevice(device)
    output.begin(24000)
    output.abort()
    assert device.calls == ["start", "abort", "close"]
    with pytest.raises(CannotPlay, match="no device"):
        SoundDevice(device).begin(1)


def test_a_machine_without_sound_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(CannotPlay, match=r"sounddevice.*aplay.*--output"):
        speakers()


def test_what_runs_ahead_keeps_order_and_passes_on_its_end() -> None:
    def items():
        yield from range(5)
        raise ValueError("over")

    got = []
    with pytest.raises(ValueError, match="over"):
        got.extend(read_ahead(items(), ahead=2))
    ahead = read_ahead(iter(range(5)))
    assert list(ahead) == [0, 1, 2, 3, 4]


def test_a_pipe_or_a_device_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_bytes)
        file = File(str(pipe), with_header=True)
        file.begin(24000)
        file.write(b"ab")
        assert file.finish() is None
        assert read.result(10) == wav_header(24000) + b"ab"
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_where_no_file_can_be_is_found_out_beforehand(tmp_path):
    check_place(str(tmp_path / "new.wav"))
    for wrong, said in ((tmp_path, "is a folder"), (tmp_path / "none" / "a.wav", "no folder")):
        with pytest.raises(OSError, match=said):
            check_place(str(wrong))
