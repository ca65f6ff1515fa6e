"""What is measured of clips of known sound."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.listening.listing import read
from training.listening.pictures import draw
from training.listening.report import Clip, Ears, Row, summary
from training.listening.sound import RATE_HZ, load, pitch_hz, voiced_s

pytestmark = pytest.mark.unit


def buzz(hertz: float, seconds: float, rate_hz: int = 24_000) -> np.ndarray:
    """A voice of a kind: ten harmonics, with a tenth of a second of silence at both ends."""
    at = np.arange(int(seconds * rate_hz)) / rate_hz
    tone = sum(np.sin(2 * np.pi * hertz * n * at) / n for n in range(1, 11))
    return np.pad(0.2 * np.asarray(tone, np.float32), rate_hz // 10)


def written(file: Path, samples: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(file, samples, 24_000)
    return file


def test_pitch_and_length_are_those_of_the_sound(tmp_path: Path) -> None:
    for hertz in (95.0, 210.0):
        samples = load(written(tmp_path / "a.wav", buzz(hertz, 1.5)))
        assert len(samples) == pytest.approx(1.7 * RATE_HZ, abs=2)
        assert pitch_hz(samples) == pytest.approx(hertz, rel=0.02)
        assert voiced_s(samples) == pytest.approx(1.5, abs=0.02)
    assert pitch_hz(np.zeros(RATE_HZ, np.float32)) is None
    assert voiced_s(np.zeros(RATE_HZ, np.float32)) == 0


def test_what_is_empty_or_endless_is_counted(tmp_path: Path) -> None:
    teacher = written(tmp_path / "teacher/heart/000.wav", buzz(200, 1.0))
    lengths = {0: 1.05, 1: 0.0, 2: 9.0, 3: 1.3}
    clips = [
        Clip(written(tmp_path / f"{number}.wav", buzz(200, seconds)), "A sentence.", teacher)
        for number, seconds in lengths.items()
    ]
    figures = summary([Ears().listen(clip) for clip in clips])
    assert (figures["clips"], figures["astray"], figures["within_15_percent"]) == (4, 2, 0.25)
    assert figures["wer_percent"] is None


def test_what_was_heard_wrong_is_counted_by_kind() -> None:
    heard = {"the cat sat down": 0, "the cat sat": 1, "": 4, "a dog sat sat by": 4}
    rows = [
        Row("a.wav", "The cat sat down.", 1.0, None, said, wrong, 4)
        for said, wrong in heard.items()
    ]
    figures = summary(rows)
    kinds = ("perfect", "mostly_wrong", "silent", "lacking_end", "repeating")
    assert [figures[kind] for kind in kinds] == [1, 2, 1, 1, 1]


def test_digits_take_the_time_of_words() -> None:
    text = "Call me at 555-0142 after six."
    assert not Row("a.wav", text, 4.8, None).is_astray
    assert Row("a.wav", text, 12.0, None).is_astray
    assert Row("a.wav", "Call me at once, and then again.", 4.9, None).is_astray


def test_a_list_finds_the_teachers_files_by_voice_and_number(tmp_path: Path) -> None:
    teacher = written(tmp_path / "teacher/heart/007.wav", buzz(200, 1.0))
    mine = written(tmp_path / "said/heart/0007.wav", buzz(200, 1.0))
    listing = tmp_path / "all.tsv"
    listing.write_text(f"{mine}\tOne.\n{tmp_path}/said/emma/0007.wav\tTwo.\n", encoding="utf-8")
    found = read(listing, tmp_path / "teacher")
    assert [clip.teacher for clip in found] == [teacher, None]
    assert found[0].text == "One."


def test_spectrograms_become_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    mine = written(tmp_path / "a.wav", buzz(200, 0.5))
    draw({"teacher": mine, "heart": mine}, "A sentence.", tmp_path / "out/a.png")
    assert (tmp_path / "out/a.png").read_bytes().startswith(b"\x89PNG")
