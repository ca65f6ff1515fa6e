"""What outside clients leave, read and reported."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from load_tests.outside import report
from load_tests.outside.__main__ import main
from load_tests.outside.locust_run import history, outcome
from load_tests.outside.tts_bench import (
    Load,
    OutsideFailed,
    as_json,
    check,
    figures_of_results,
    figures_of_summary,
    theirs,
)
from tests.unit.load_tests.values import at, result

HEAD = (
    "Timestamp,User Count,Type,Name,Requests/s,Failures/s,50%,66%,75%,80%,90%,95%,98%,99%,99.9%,"
    "99.99%,100%,Total Request Count\n"
)
HISTORY = (
    HEAD
    + "100,2,,Aggregated,0.0,0.0,N/A,N/A,N/A,N/A,N/A,N/A,N/A,N/A,N/A,N/A,N/A,0\n"
    + "101,4,audio,first playable,2.5,0.0,20,0,0,0,0,40,0,60,0,0,0,5\n"
    + "101,4,,Aggregated,10.0,0.5,20,0,0,0,0,900,0,950,0,0,0,20\n"
)
OUTCOME = {
    "rows": [
        {"name": "dry", "requests": 37, "failures": 1, "per_s": 2.1, "times_ms": [0, 0, 330]},
        {"name": "Aggregated", "requests": 148, "failures": 1, "per_s": 8.3, "times_ms": [1, 2, 3]},
    ],
    "faults": [{"what": "dry: dry for 0.33 s", "times": 1}],
}
# Stands for the package: says what it was asked, and fails if told to or where something is.
PACKAGE = """
import json, os, sys
asked = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if "FAILS" in os.environ or os.path.exists(asked["--output"]):
    sys.exit("Error: output path already exists")
os.makedirs(asked["--output"])
times = dict.fromkeys(("p50", "p95", "p99"), float(os.environ["FIRST_MS"]))
names = ("ttfb", "first_playable", "audible_ttfa", "end_to_end", "scheduling_lag")
said = {name + "_ms": times for name in names}
counts = {"scheduled_requests": 5, "audio_successful_requests": 5, "underrun_requests": 0}
counts |= {"pcm_complete_requests": 5}
with open(asked["--output"] + "/summary.json", "w") as file:
    json.dump(said | counts, file)
with open(asked["--output"] + "/asked.json", "w") as file:
    json.dump(sys.argv, file)
"""
FACTS: dict[str, Any] = {"gpus": [], "cpus": 2, "commit": "abc", "command": "python -m x"}


def test_locusts_files_are_read_over_time(tmp_path: Path) -> None:
    (tmp_path / "locust_stats_history.csv").write_text(HISTORY, encoding="utf-8")
    (tmp_path / "outcome.json").write_text(json.dumps(OUTCOME), encoding="utf-8")
    found = history(tmp_path)
    assert found["at_s"] == [0, 1]
    assert found["users"] == [2, 4]
    assert found["streams_per_s"] == [0.0, 2.5]
    assert found["first_playable_p95_ms"] == [0.0, 40.0]
    facts = {**FACTS, "shape": "spike", "users": 4, "minutes": 0.3}
    text = report.locust(tmp_path, facts, outcome(tmp_path), found)
    assert "| dry | 37 | 1 | 2.10 | 0.0 | 0.0 | 330.0 |" in text
    assert "| 1 | dry: dry for 0.33 s |" in text
    assert (tmp_path / "report.md").exists()


def test_locust_that_left_nothing_has_no_rows(tmp_path: Path) -> None:
    assert outcome(tmp_path) == {"rows": [], "faults": []}
    assert history(tmp_path)["at_s"] == []


def test_both_clients_stand_beside_each_other(tmp_path: Path) -> None:
    quantiles = {"p50": 20.0, "p95": 30.0, "p99": None}
    names = ("ttfb_ms", "first_playable_ms", "audible_ttfa_ms", "end_to_end_ms")
    summary: dict[str, Any] = dict.fromkeys((*names, "scheduling_lag_ms"), quantiles)
    summary |= {"scheduled_requests": 5, "audio_successful_requests": 3, "underrun_requests": 1}
    summary["pcm_complete_requests"] = 4
    theirs = figures_of_summary(summary)
    ours = figures_of_results(
        [result(), result(arrivals=tuple(at((0.3, 1), (0.5, 25)))), result(error="status")]
    )
    assert ours.first_playable_ms == pytest.approx((100.0, 300.0, 300.0))
    assert (ours.requests, ours.complete) == (3, 2)
    load = Load("http://x", "m", "ryan", 4.0, 30.0, 10.0)
    found = as_json(load, {"tts_bench": theirs, "load_tests": ours})
    text = report.compared(tmp_path, FACTS, [found])
    assert "| first playable | 20.0 / 30.0 / - | 100.0 / 300.0 / 300.0 |" in text
    assert "| complete | 4 | 2 |" in text
    assert "| stalled | 1 | 0 |" in text


def test_what_tts_bench_calls_stalled_we_do_as_well() -> None:
    """Half a second of silence at once, or a second in all."""
    smooth = at((0.1, 1), (0.6, 60))
    once = at((0.1, 1), (0.7, 60))
    often = at((0.1, 1), *((0.1 + 0.5 * n, 1 + n) for n in range(1, 4)))
    found = figures_of_results([result(arrivals=tuple(a)) for a in (smooth, once, often)])
    assert (found.stalled, found.underruns) == (2, 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    package = tmp_path / "src" / "tts_bench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "cli.py").write_text("import json", encoding="utf-8")
    (package / "__main__.py").write_text(PACKAGE, encoding="utf-8")
    return package.parent


def test_a_client_that_cannot_be_run_is_told_before_any_load(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(Path(sys.executable), source)
    with pytest.raises(OutsideFailed, match="no package tts_bench"):
        check(Path(sys.executable), source / "tts_bench")
    with pytest.raises(OutsideFailed, match="cannot be run"):
        check(source / "python", source)
    (source / "tts_bench" / "cli.py").write_text("import jiwer_is_not_here", encoding="utf-8")
    nobody = ["--url", "http://127.0.0.1:9", "--out", str(source / "out")]
    assert main([*nobody, "bench", "--source", str(source)]) == 2
    assert "No module named 'jiwer_is_not_here'" in capsys.readouterr().out


def test_a_second_run_takes_the_place_of_the_first(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Load("http://x", "m", "alloy", 4.0, 1.0, 0.0, frames=60)
    out = source / "out"

    def run(first_ms: float) -> float:
        monkeypatch.setenv("FIRST_MS", str(first_ms))
        return theirs(load, Path(sys.executable), source, out).first_playable_ms[0]

    assert [run(20.0), run(30.0)] == [20.0, 30.0]
    asked = json.loads((out / "rps-4" / "asked.json").read_text("utf-8"))
    assert asked[asked.index("--voice") + 1] == "alloy"
    assert {"min_new_tokens=60", "max_new_tokens=60"} < {*asked}
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(OutsideFailed, match="ended with 1"):
        run(40.0)


def test_one_length_is_asked_for_of_tts_bench(source: Path) -> None:
    nobody = ["--url", "http://127.0.0.1:9", "--out", str(source), "--frames", "30:60"]
    assert main([*nobody, "bench", "--source", str(source)]) == 2
