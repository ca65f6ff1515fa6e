"""The model card says what was measured."""

import json
from pathlib import Path

import pytest

from training.listening.card import write_card
from training.listening.report import Row, summary

pytestmark = pytest.mark.unit


def test_a_card_has_the_figures_of_every_report(tmp_path: Path) -> None:
    rows = [Row("a.wav", "A sentence.", 1.0, 200.0, "a sentence", 0, 2), Row("b", "B", 0.0, None)]
    (tmp_path / "report").mkdir()
    figures = {"heart": summary(rows), "all": summary(rows)}
    (tmp_path / "report/summary.json").write_text(json.dumps(figures), encoding="utf-8")
    write_card(tmp_path, {"Forty sentences": tmp_path / "report"}, {"heart": "af_heart"})
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "### Forty sentences" in card
    assert "| heart | 2 | 0.0 | 1 | 200.0 | 1 |" in card
    assert "DNSMOS |" not in card, "a column of what nobody measured"
    assert "af_heart" in card
