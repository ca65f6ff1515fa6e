import io
import re
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from serve_app.audio.formats import AudioFormat
from serve_app.audio.output import Output
from serve_app.audio.wav import wav_header
from serve_app.check import packages
from serve_app.cli import options
from serve_app.http import web

RATE_HZ = 24000
SAMPLES = np.array([0, 1, -1, 32767, -32768, 258], dtype=np.int16)


def test_pcm_is_little_endian_and_has_no_header():
    encoder = AudioFormat.PCM.encoder(RATE_HZ)
    assert encoder.encode(SAMPLES[:2]) == b"\x00\x00\x01\x00"
    assert encoder.encode(SAMPLES[2:].astype(">i2")) == SAMPLES[2:].astype("<i2").tobytes()
    assert encoder.finish() == b""


def test_a_streamed_wav_has_its_header_in_the_first_piece_only():
    encoder = AudioFormat.WAV.encoder(RATE_HZ)
    first = encoder.encode(SAMPLES[:2])
    assert first == wav_header(RATE_HZ) + SAMPLES[:2].tobytes()
    assert encoder.encode(SAMPLES[2:]) == SAMPLES[2:].tobytes()
    assert encoder.finish() == b""


def test_a_streamed_wav_states_an_unknown_length_and_can_be_read():
    encoder = AudioFormat.WAV.encoder(RATE_HZ)
    data = encoder.encode(SAMPLES) + encoder.finish()
    assert data[4:8] == data[40:44] == b"\xff\xff\xff\xff"
    with wave.open(io.BytesIO(data)) as reader:
        assert reader.getparams()[:3] == (1, 2, RATE_HZ)
        assert reader.readframes(len(SAMPLES)) == SAMPLES.tobytes()


def test_a_stream_without_samples_is_still_a_wav_file():
    data = AudioFormat.WAV.encoder(RATE_HZ).finish()
    assert len(data) == 44


def test_a_wav_file_states_its_exact_length():
    data = Output(AudioFormat.WAV, RATE_HZ).file(SAMPLES)
    assert int.from_bytes(data[4:8], "little") == len(data) - 8
    assert int.from_bytes(data[40:44], "little") == 2 * len(SAMPLES)
    assert data.endswith(b"ICMT\x14\x00\x00\x00AI-generated speech\x00")
    with wave.open(io.BytesIO(data)) as reader:
        assert reader.getnframes() == len(SAMPLES)
    samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate_hz == RATE_HZ
    np.testing.assert_array_equal(samples, SAMPLES)


@pytest.mark.parametrize("size", [0, 1, 7, 5000])
def test_streamed_and_whole_bodies_have_the_same_samples(size):
    samples = np.arange(size, dtype=np.int16)
    for audio_format in (AudioFormat.WAV, AudioFormat.PCM):
        encoder = audio_format.encoder(RATE_HZ)
        halves = (samples[: size // 2], samples[size // 2 :])
        streamed = b"".join(map(encoder.encode, halves)) + encoder.finish()
        whole = Output(audio_format, RATE_HZ).file(samples)
        header = 44 if audio_format is AudioFormat.WAV else 0
        assert streamed[header:] == samples.tobytes()
        assert whole[header : header + 2 * size] == samples.tobytes()


def test_content_types_name_the_rate_of_the_model():
    assert AudioFormat.WAV.content_type(RATE_HZ) == "audio/wav"
    assert AudioFormat.MP3.content_type(RATE_HZ) == "audio/mpeg"
    assert AudioFormat.OPUS.content_type(RATE_HZ) == "audio/ogg; codecs=opus"
    assert AudioFormat.PCM.content_type(16000) == "audio/pcm;rate=16000;channels=1"


def test_what_lists_the_formats_and_cannot_import_them_lists_all() -> None:
    """A new format is missed by the command, the playground and `check`, if not by this."""
    formats = {str(form) for form in AudioFormat}
    assert set(options.FORMATS) == formats
    assert {*packages.ENCODERS, "wav", "pcm"} == formats
    static = Path(web.__file__).with_name("static")
    page = (static / "index.html").read_text(encoding="utf-8")
    choices = re.search(r'name="response_format">(.*?)</select>', page, re.DOTALL)
    assert choices is not None
    assert set(re.findall(r'value="(\w+)"', choices[1])) == formats
    types = re.search(r"TYPES = \{(.*?)\}", (static / "js/take.js").read_text(encoding="utf-8"))
    assert types is not None
    assert set(re.findall(r"(\w+): ", types[1])) == formats
