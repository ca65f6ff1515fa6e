import gc
import io
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from av.container import OutputContainer
from av.error import FFmpegError

from serve_app.audio import compressed
from serve_app.audio.compressed import CompressedEncoder
from serve_app.audio.formats import SAMPLE_RATES_HZ, AudioFormat
from serve_app.audio.lame import LameEncoder
from tests.unit.audio.signals import (
    RATE_HZ,
    decoded,
    delay,
    likeness,
    pitch,
    tags,
    tone,
    voice_like,
)

CODECS = {
    "mp3": compressed.MP3,
    "opus": compressed.OPUS,
    "aac": compressed.AAC,
    "flac": compressed.FLAC,
}
# Samples of input after which the first audio can be decoded, in pieces of 20 ms.
FIRST_AUDIO_SAMPLES = {"mp3": 1920, "opus": 960, "aac": 2400, "flac": 960}
# Samples of a frame at 24 kHz, and the silence a decoder gives before the first sample.
FRAME_SAMPLES = {"mp3": 576, "opus": 480, "aac": 1024, "flac": 576}
DELAY_SAMPLES = {"mp3": 1105, "opus": 0, "aac": 1024, "flac": 0}
FIRST_BYTES = {"mp3": b"\xff\xf3", "opus": b"OggS", "aac": b"\xff\xf1", "flac": b"fLaC"}

every_codec = pytest.mark.parametrize("name", CODECS)


def encoded(name, samples, piece=1920, rate_hz=RATE_HZ, to_file=False):
    encoder = AudioFormat(name).encoder(rate_hz, len(samples) if to_file else None)
    pieces = [encoder.encode(samples[i : i + piece]) for i in range(0, len(samples), piece)]
    return b"".join([*pieces, encoder.finish()])


@every_codec
def test_the_first_audio_can_be_played_after_few_samples(name):
    encoder = AudioFormat(name).encoder(RATE_HZ)
    data, samples, piece = b"", voice_like(24000), 480
    for end in range(piece, len(samples) + 1, piece):
        data += encoder.encode(samples[end - piece : end])
        try:
            playable = len(decoded(data)[0]) > 0
        except FFmpegError:
            playable = False
        if playable:
            assert end <= FIRST_AUDIO_SAMPLES[name]
            return
    pytest.fail("nothing could be decoded before the end")


@every_codec
def test_a_frame_of_the_model_gives_bytes_at_once_and_each_further_one_more(name):
    encoder = AudioFormat(name).encoder(RATE_HZ)
    sizes = [len(encoder.encode(voice_like(1920, seed=i))) for i in range(10)]
    # AAC looks two of its frames ahead.
    assert all(sizes[1 if name == "aac" else 0 :])


@every_codec
def test_a_stream_starts_as_its_container_does(name):
    assert encoded(name, voice_like(4800)).startswith(FIRST_BYTES[name])


@every_codec
@pytest.mark.parametrize("num_samples", [4800, 24000, 100_001])
def test_the_length_is_kept_within_a_frame(name, num_samples):
    audio, rate_hz = decoded(encoded(name, voice_like(num_samples)))
    kept = len(audio) * RATE_HZ / rate_hz - DELAY_SAMPLES[name]
    assert -1 <= kept - num_samples <= FRAME_SAMPLES[name]


@every_codec
def test_what_comes_back_sounds_like_what_went_in(name):
    samples = voice_like(72000)
    audio, rate_hz = decoded(encoded(name, samples))
    audio = audio[:: rate_hz // RATE_HZ]
    late = delay(samples / 32768, audio)
    assert abs(late - DELAY_SAMPLES[name]) <= 2
    assert likeness(samples / 32768, audio[late:], RATE_HZ) > 0.95


@every_codec
def test_the_pitch_is_kept(name):
    audio, rate_hz = decoded(encoded(name, tone(48000)))
    assert pitch(audio, rate_hz) == pytest.approx(220, rel=0.002)


@every_codec
def test_any_split_of_the_samples_gives_the_same_audio(name):
    samples = voice_like(24000)
    whole, _ = decoded(encoded(name, samples, piece=len(samples)))
    for piece in (1, 333, 1920) if name == "flac" else (333, 1920):
        split, _ = decoded(encoded(name, samples, piece=piece))
        np.testing.assert_array_equal(split, whole)


@every_codec
def test_two_responses_one_after_the_other_play_as_both(name):
    data = encoded(name, voice_like(24000)) + encoded(name, voice_like(48000))
    audio, rate_hz = decoded(data)
    expected_s = 3 + 2 * DELAY_SAMPLES[name] / RATE_HZ
    assert len(audio) / rate_hz == pytest.approx(expected_s, abs=0.1)


@every_codec
def test_silence_stays_silent(name):
    audio, _ = decoded(encoded(name, np.zeros(24000, np.int16)))
    assert len(audio)
    assert np.abs(audio).max() < 1e-4


@every_codec
@pytest.mark.parametrize("num_samples", [1, 100])
def test_very_short_audio_survives(name, num_samples):
    audio, _ = decoded(encoded(name, tone(num_samples + 1)))
    assert len(audio) >= num_samples


@every_codec
@pytest.mark.parametrize("num_samples", [None, 0])
def test_a_stream_without_samples_ends_without_an_error(name, num_samples):
    encoder = AudioFormat(name).encoder(RATE_HZ, num_samples)
    assert encoder.encode(np.zeros(0, np.int16)) == b""
    assert isinstance(encoder.finish(), bytes)


@every_codec
@pytest.mark.parametrize("rate_hz", [8000, 16000, 24000, 48000])
def test_every_codec_takes_other_rates(name, rate_hz):
    audio, decoded_hz = decoded(encoded(name, tone(rate_hz, rate_hz), rate_hz=rate_hz))
    assert decoded_hz == (48000 if name == "opus" else rate_hz)
    assert pitch(audio, decoded_hz) == pytest.approx(220, rel=0.002)


@pytest.mark.parametrize(("name", "codec"), CODECS.items())
def test_a_file_says_that_a_machine_made_it(name, codec):
    found = tags(encoded(name, voice_like(4800), to_file=True))
    assert name == "aac" or found["comment"] == "AI-generated speech"


@pytest.mark.parametrize("name", ["opus", "flac"])
def test_a_stream_whose_container_begins_with_tags_says_it_as_well(name):
    assert tags(encoded(name, voice_like(4800)))["comment"] == "AI-generated speech"


@pytest.mark.parametrize("num_samples", [4800, 50_001])
def test_files_without_loss_of_length_are_read_as_exactly_as_long(num_samples):
    samples = voice_like(num_samples)
    audio, rate_hz = soundfile.read(
        io.BytesIO(encoded("flac", samples, to_file=True)), dtype="int16"
    )
    assert rate_hz == RATE_HZ
    np.testing.assert_array_equal(audio, samples)
    audio, _ = decoded(encoded("mp3", samples, to_file=True))
    assert len(audio) == num_samples


def test_a_streamed_flac_has_the_samples_bit_by_bit():
    samples = voice_like(30_000)
    audio, _ = decoded(encoded("flac", samples))
    np.testing.assert_array_equal(np.round(audio * 32768).astype(np.int16), samples)


@every_codec
@pytest.mark.parametrize("pieces", [0, 1])
def test_a_stream_that_is_left_gives_its_memory_back_at_once(name, pieces):
    kinds = LameEncoder if name == "mp3" else OutputContainer

    def open_ones():
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = open_ones()
        encoder = AudioFormat(name).encoder(RATE_HZ)
        for _ in range(pieces):
            encoder.encode(tone(1920))
        assert open_ones() == before + 1
        del encoder
        assert open_ones() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("rate_hz", SAMPLE_RATES_HZ)
def test_an_mp3_stream_by_lame_is_as_long_and_sounds_as_one_by_ffmpeg(rate_hz):
    samples = voice_like(2 * rate_hz, rate_hz)
    without = {"write_xing": "0", "id3v2_version": "0"}
    muxer = CompressedEncoder(replace(compressed.MP3, stream_options=without), rate_hz)
    expected, _ = decoded(muxer.encode(samples) + muxer.finish())
    audio, decoded_hz = decoded(encoded("mp3", samples, rate_hz=rate_hz))
    assert decoded_hz == rate_hz
    assert len(audio) == len(expected)
    assert likeness(expected, audio, rate_hz) > 0.98
