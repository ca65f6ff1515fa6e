"""A checkpoint speaks lists of sentences for the recogniser, as the server would."""

from pathlib import Path

import soundfile

from serve_app.models.checkpoint.embedded import embedded_checkpoint
from training.listening.speaking import Manner, speak


def test_voices_take_turns_and_say_nothing_twice(tmp_path: Path) -> None:
    texts = ["Yes.", "It is 5."]
    listing = speak(embedded_checkpoint(), texts, tmp_path, Manner(in_turn=True, together=2))
    rows = [line.split("\t") for line in listing.read_text(encoding="utf-8").splitlines()]
    files = [tmp_path / "heart/0000.wav", tmp_path / "michael/0001.wav"]
    assert rows == [[str(file), text] for file, text in zip(files, texts, strict=True)]
    assert all(0.3 < soundfile.info(file).duration < 3 for file in files)
    (tmp_path / "heart/0000.wav").unlink()
    said = files[1].stat().st_mtime_ns
    assert speak(embedded_checkpoint(), texts, tmp_path, Manner(in_turn=True)) == listing
    assert files[0].exists()
    assert files[1].stat().st_mtime_ns == said
