import io

import numpy as np
import pytest
import soundfile

from serve_app.audio.formats import SAMPLE_RATES_HZ, AudioFormat
from serve_app.audio.output import Output
from tests.unit.audio.signals import RATE_HZ, decoded, likeness, pitch, tone, voice_like

every_format = pytest.mark.parametrize("audio_format", AudioFormat)


def played(data, output):
    """float [N] of a body and its rate."""
    if output.format is AudioFormat.PCM:
        return np.frombuffer(data, "<i2") / 32768, output.sample_rate_hz
    return decoded(data)


def streamed(output, samples, piece=1920):
    encoder = output.stream()
    pieces = [encoder.encode(samples[i : i + piece]) for i in range(0, len(samples), piece)]
    return b"".join([*pieces, encoder.finish()])


@every_format
@pytest.mark.parametrize("wanted_hz", SAMPLE_RATES_HZ)
@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_every_format_has_every_rate_and_speed(audio_format, wanted_hz, speed):
    output = Output(audio_format, RATE_HZ, wanted_hz, speed)
    assert output.sample_rate_hz >= wanted_hz
    for data in (streamed(output, tone(36000)), output.file(tone(36000))):
        audio, rate_hz = played(data, output)
        assert audio_format is AudioFormat.OPUS or rate_hz == output.sample_rate_hz
        assert pitch(audio, rate_hz) == pytest.approx(220, rel=0.01)
        codec_s = 0.15 if audio_format in (AudioFormat.MP3, AudioFormat.AAC) else 0.02
        assert 0 <= len(audio) / rate_hz - output.seconds(36000) < codec_s * 24000 / wanted_hz


@every_format
def test_the_rate_of_the_model_is_the_default(audio_format):
    output = Output(audio_format, RATE_HZ)
    assert output.sample_rate_hz == RATE_HZ
    assert not Output(AudioFormat.PCM, RATE_HZ).is_costly
    assert Output(AudioFormat.PCM, RATE_HZ, speed=2.0).is_costly


def test_work_is_that_of_the_encoder_and_of_the_filter_for_what_comes_out():
    assert Output(AudioFormat.PCM, RATE_HZ).work_s(RATE_HZ) == 0
    plain = Output(AudioFormat.OPUS, RATE_HZ).work_s(RATE_HZ)
    assert plain == AudioFormat.OPUS.cost > 0
    assert Output(AudioFormat.OPUS, RATE_HZ, speed=0.5).work_s(RATE_HZ) > 2 * plain


@every_format
def test_a_stream_and_a_file_sound_the_same(audio_format):
    output, samples = Output(audio_format, RATE_HZ, speed=0.8), voice_like(30_000)
    stream, _ = played(streamed(output, samples), output)
    file, _ = played(output.file(samples), output)
    # A file of MP3 says how much of the codec's delay to leave out.
    late = len(stream) - len(file) if audio_format is AudioFormat.MP3 else 0
    offset = min(late, 1105)
    length = min(len(file), len(stream) - offset)
    stream, file = stream[offset:][:length], file[:length]
    if audio_format is AudioFormat.MP3:  # not the same encoder
        assert likeness(stream, file, RATE_HZ) > 0.99
    else:
        np.testing.assert_allclose(stream, file, atol=1e-6)


@every_format
def test_every_piece_of_bare_samples_holds_whole_samples(audio_format):
    output = Output(audio_format, RATE_HZ, 22050, 1.3)
    encoder = output.stream()
    if audio_format in (AudioFormat.PCM, AudioFormat.WAV):
        assert all(len(encoder.encode(tone(1000))) % 2 == 0 for _ in range(20))


@pytest.mark.parametrize("audio_format", [AudioFormat.WAV, AudioFormat.FLAC])
def test_a_file_of_known_length_can_be_read_as_a_whole(audio_format):
    output = Output(audio_format, RATE_HZ, 16000, 2.0)
    audio, rate_hz = soundfile.read(io.BytesIO(output.file(tone(48000))))
    assert (rate_hz, len(audio)) == (16000, 16000)


@every_format
@pytest.mark.parametrize("num_samples", [0, 1])
def test_hardly_any_samples_are_no_error(audio_format, num_samples):
    output = Output(audio_format, RATE_HZ, 48000, 0.5)
    assert isinstance(streamed(output, tone(num_samples)), bytes)
    assert isinstance(output.file(tone(num_samples)), bytes)


@every_format
@pytest.mark.parametrize(("wanted_hz", "speed"), [(None, 1.0), (16000, 1.3)])
def test_a_file_written_part_by_part_is_the_file_written_at_once(audio_format, wanted_hz, speed):
    output, samples = Output(audio_format, RATE_HZ, wanted_hz, speed), voice_like(60000)
    file = io.BytesIO()
    output.write(np.split(samples, [7000, 7001, 40000]), len(samples), file)
    # The serial number of an Ogg stream is drawn.
    if audio_format is AudioFormat.OPUS:
        audio, _ = decoded(file.getvalue())
        np.testing.assert_array_equal(audio, decoded(output.file(samples))[0])
    else:
        assert file.getvalue() == output.file(samples)
