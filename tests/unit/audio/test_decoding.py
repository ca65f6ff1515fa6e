"""What a recording may cost is bounded: samples, memory, time; and what a broken child tells."""

import io
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile

from serve_app.audio import decoding, decoding_child
from serve_app.audio.decoding import ClipLimits, decode_clip
from serve_app.errors import InvalidRequest
from tests.integration.http.voices.recordings import container

LIMITS = ClipLimits(1.0, 30.0, 10 << 20)
HZ = 48000


def silence(seconds):
    return np.zeros(int(seconds * HZ), np.float32)


@pytest.mark.parametrize(
    ("kind", "codec", "demuxer"),
    [("webm", "libopus", "matroska"), ("mp4", "aac", "mp4"), ("adts", "aac", "aac")],
)
def test_ffmpeg_decodes_no_more_than_a_recording_may_have(kind, codec, demuxer):
    data = container(silence(120), kind, codec)
    rate_hz, samples = decoding_child.decoded(data, demuxer, 1.0)
    assert rate_hz == HZ
    assert HZ < len(samples) <= 1.2 * HZ


@pytest.mark.parametrize("kind", ["FLAC", "OGG", "MP3"])
def test_libsndfile_decodes_no_more_than_a_recording_may_have(kind):
    file = io.BytesIO()
    hz = 16000
    with soundfile.SoundFile(file, "w", hz, 1, format=kind) as out:
        for _ in range(600):  # libsndfile's Vorbis breaks on all of it at once
            out.write(np.zeros(hz, np.float32))
    data = file.getvalue()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest) as caught:
            decode_clip(data, "audio_sample", LIMITS)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code == "audio_too_long"
    # 30 s of mono float32 and their copy; all of it would be twenty times as much.
    assert peak < 3 * 30 * hz * 4


# A decoder that does what an exploited one would do, in the process that FFmpeg has.
ATTACKS = {
    "memory": "bytearray(3 << 30)",
    "time": "[None for _ in iter(int, 1)]",
    "a file": "open('written', 'wb').write(b'x')",
    "a crash": "os.kill(os.getpid(), 11)",
}


def child(attack, folder):
    program = (
        "import os, sys; from serve_app.audio import decoding_child as child;"
        " child._CPU_S = 1; sys.argv[1:] = ['mp4', '30'];"
        f" child.decoded = lambda *_: {ATTACKS[attack]}; sys.exit(child.main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, input=b"", capture_output=True, timeout=60
    )


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_takes_over_the_decoder_gets_nothing(attack, tmp_path):
    done = child(attack, tmp_path)
    assert done.returncode != 0
    assert done.stdout == b""
    written = tmp_path / "written"
    assert not written.exists() or written.stat().st_size == 0
    if attack == "memory":
        assert done.stderr.strip().endswith(b"cannot be decoded: it is damaged, or no audio")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 1", "cannot be decoded"),
        ("echo 'has more than 8 tracks' >&2; exit 1", "'file' has more than 8 tracks."),
        ("kill -SEGV $$", "damaged"),
        ("printf ab", "damaged"),
        ("sleep 60", "too long to decode"),
    ],
)
def test_a_child_that_breaks_or_hangs_is_the_files_fault(tmp_path, monkeypatch, script, said):
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setattr(decoding.sys, "executable", str(program))
    monkeypatch.setattr(decoding, "_CHILD_S", 1.0)
    with pytest.raises(InvalidRequest, match=said) as caught:
        decode_clip(b"\0\0\0\x20ftypisom" + bytes(100), "file", LIMITS)
    assert caught.value.code == "invalid_audio"
