"""The recipe's clock: what a call may use, and what is left for the next."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.codec import CodecTrainer
from training.codes import CodeBook
from training.corpus import Stream, Utterance
from training.pipeline import CODES, CORPUS, IMAGINED, PLAN, Minutes, Recipe
from training.plan import Planned, write
from training.progress import Clock


def test_a_call_gives_a_piece_what_is_left_of_both(tmp_path: Path) -> None:
    (tmp_path / "spent.json").write_text(json.dumps({"codec": 100.0, "speak": 60.0}))
    minutes = Minutes(speak=1.0, codec=3.0)
    recipe = Recipe(tmp_path, minutes, "cpu", limit_s=500.0)
    assert recipe.is_done("speak")
    assert not recipe.is_done("codec")
    assert recipe.left_s("codec") == pytest.approx(80.0)
    assert Recipe(tmp_path, minutes, "cpu", limit_s=30.0).left_s("codec") <= 30.0


def test_the_rate_rises_then_falls_with_the_time_of_all_calls() -> None:
    rates = [
        Clock(total_s=1000.0, limit_s=1e9, spent_s=spent).rate(1.0) for spent in (1, 20, 500, 999)
    ]
    assert rates[0] < 0.1
    assert rates[1] == pytest.approx(1.0, abs=0.01)
    assert 0.4 < rates[2] < 0.6
    assert rates[3] < 0.03


def test_a_call_ends_when_its_minutes_do() -> None:
    assert Clock(total_s=100.0, limit_s=0.0).is_over
    assert Clock(total_s=100.0, limit_s=50.0, spent_s=100.0).is_over
    assert not Clock(total_s=100.0, limit_s=50.0).is_over


def test_what_loading_takes_is_part_of_what_a_call_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _speak(tmp_path / CORPUS, 1)
    recipe = Recipe(tmp_path, Minutes(codec=20.0), "cpu", limit_s=1000.0)
    load, limits = Stream.load, list[float]()

    def late(*arguments: Any, **options: Any) -> Stream:
        recipe._ends -= 900.0
        return load(*arguments, **options)

    def run(trainer: CodecTrainer, stream: Stream, total_s: float, limit_s: float, *_: Any) -> None:
        limits.append(limit_s)

    monkeypatch.setattr(Stream, "load", late)
    monkeypatch.setattr(CodecTrainer, "run", run)
    recipe.codec("all")
    (limit,) = limits
    assert limit <= 100.0


def _speak(folder: Path, number: int) -> None:
    """One sentence of a corpus, as `synthesis` writes it."""
    folder.mkdir()
    noise = np.random.default_rng(number).integers(-3000, 3000, 9600)
    (folder / "audio-0.s16").write_bytes(noise.astype("<i2").tobytes())
    row = Utterance(
        number, "said", "heart", "audio-0.s16", 0, 9600, (0, 50, 60, 0), (3, 4, 4, 5), 0
    )
    (folder / "manifest-0.jsonl").write_text(row.row() + "\n", encoding="utf-8")


def test_codes_are_kept_when_their_speech_is_gone(tmp_path: Path) -> None:
    corpus, book = tmp_path / "corpus", tmp_path / CODES
    write([Planned(i, "heart", (50, 60), "said") for i in range(4)], tmp_path / PLAN)
    recipe = Recipe(tmp_path, Minutes(codec=0.0), "cpu", limit_s=0.0)
    _speak(corpus, 1)
    recipe.encode()
    first = CodeBook.load(book)
    written = book.stat().st_mtime_ns
    recipe.encode()
    assert book.stat().st_mtime_ns == written
    shutil.rmtree(corpus)
    _speak(corpus, 2)
    recipe.encode()
    recipe.imagine()
    both = CodeBook.load(book)
    assert both.ids.tolist() == [1, 2]
    assert np.array_equal(both.codes[: both.starts[1]], first.codes)
    assert CodeBook.load(tmp_path / IMAGINED).ids.tolist() == [0, 3]


def test_what_a_team_encodes_apart_is_read_as_one(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write([Planned(i, "heart", (50, 60), "said") for i in range(4)], tmp_path / PLAN)
    recipe = Recipe(tmp_path, Minutes(), "cpu", limit_s=0.0)
    _speak(corpus, 3)
    recipe.encode()
    (tmp_path / CODES).rename(tmp_path / "codes-1.npz")
    shutil.rmtree(corpus)
    _speak(corpus, 1)
    recipe.encode()
    book = CodeBook.load_all(tmp_path)
    assert book is not None
    assert sorted(book.ids.tolist()) == [1, 3]
    stream = Stream.load(corpus, torch.device("cpu"))
    coded = stream.with_codes(book.ids, book.starts, book.codes)
    *_, codes = coded.coded_crops(2, 3, torch.Generator().manual_seed(0))
    place = book.ids.tolist().index(1)
    own = book.codes[book.starts[place] : book.starts[place + 1]]
    windows = {own[i : i + 3].tobytes() for i in range(len(own) - 2)}
    assert {crop.T.numpy().astype(np.uint8).tobytes() for crop in codes} <= windows
