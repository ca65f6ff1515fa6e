import numpy as np
import pytest

from serve_app.audio.filters import PcmFilter
from tests.unit.audio.signals import RATE_HZ, likeness, pitch, tone, voice_like

SPEEDS = (0.25, 0.5, 0.8, 1.3, 2.0, 3.0, 4.0)
RATES_HZ = (8000, 16000, 22050, 44100, 48000)


def filtered(samples, to_hz=RATE_HZ, speed=1.0, piece=1920):
    stage = PcmFilter(RATE_HZ, to_hz, speed)
    pieces = [stage.filter(samples[i : i + piece]) for i in range(0, len(samples), piece)]
    return np.concatenate([*pieces, stage.finish()])


@pytest.mark.parametrize("speed", SPEEDS)
def test_speed_changes_the_length_and_not_the_pitch(speed):
    audio = filtered(tone(48000), speed=speed)
    assert len(audio) == round(48000 / speed)
    assert pitch(audio, RATE_HZ) == pytest.approx(220, rel=0.01)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_another_rate_keeps_the_pitch_and_the_seconds(rate_hz):
    audio = filtered(tone(48000), to_hz=rate_hz)
    assert len(audio) == 2 * rate_hz
    assert pitch(audio, rate_hz) == pytest.approx(220, rel=0.001)


def test_there_and_back_is_the_same_audio():
    samples = voice_like(48000)
    up = filtered(samples, to_hz=48000)
    stage = PcmFilter(48000, RATE_HZ)
    back = np.concatenate([stage.filter(up), stage.finish()])
    assert len(back) == len(samples)
    error = (back.astype(float) - samples)[500:-500]
    assert np.std(error) < 0.01 * np.std(samples)


@pytest.mark.parametrize("piece", [100, 480, 5000])
@pytest.mark.parametrize(("to_hz", "speed"), [(8000, 1.0), (RATE_HZ, 1.7), (44100, 0.4)])
def test_any_split_of_the_samples_gives_the_same_output(piece, to_hz, speed):
    samples = voice_like(20_000)
    whole = filtered(samples, to_hz, speed, len(samples))
    np.testing.assert_array_equal(filtered(samples, to_hz, speed, piece), whole)


@pytest.mark.parametrize("num_samples", [0, 1, 7, 100, 1000])
@pytest.mark.parametrize(
    ("to_hz", "speed"), [(8000, 1.0), (48000, 1.0), (RATE_HZ, 0.25), (44100, 4)]
)
def test_the_shortest_streams_have_their_exact_length(num_samples, to_hz, speed):
    audio = filtered(tone(num_samples), to_hz, speed)
    assert len(audio) == round(num_samples * to_hz / RATE_HZ / speed)
    assert audio.dtype == np.int16


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_end_of_the_audio_is_not_swallowed(speed):
    samples = np.concatenate([np.zeros(24000, np.int16), tone(4800)])
    audio = filtered(samples, speed=speed).astype(float)
    loud = np.flatnonzero(np.abs(audio) > 3000)
    assert len(audio) - loud[-1] < 0.04 * RATE_HZ / min(1, speed)


@pytest.mark.parametrize(
    ("speed", "most"), [(0.25, 240), (0.8, 160), (1.5, 160), (2.0, 160), (4.0, 320)]
)
def test_output_begins_after_few_milliseconds_of_input(speed, most):
    stage = PcmFilter(RATE_HZ, RATE_HZ, speed)
    frames = 1
    while not len(stage.filter(tone(1920))):
        frames += 1
    assert frames * 80 <= most


def test_silence_stays_silent():
    assert not filtered(np.zeros(9600, np.int16), 16000, 1.3).any()


def test_slow_speech_is_the_same_speech():
    samples = voice_like(48000)
    slow = filtered(samples, speed=0.5)
    assert likeness(samples / 32768, filtered(slow, speed=2.0) / 32768, RATE_HZ) > 0.8
