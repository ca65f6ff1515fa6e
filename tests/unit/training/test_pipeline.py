"""The recipe's clock: what a call may use, and what is left for the next."""

import json
from pathlib import Path

import pytest

from training.pipeline import Minutes, Recipe
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
