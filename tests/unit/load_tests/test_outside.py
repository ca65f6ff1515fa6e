"""What outside clients leave, read and reported."""

from pathlib import Path
from typing import Any

import pytest

from load_tests.outside import report
from load_tests.outside.locust_run import history, rows
from load_tests.outside.tts_bench import (
    Load,
    as_json,
    figures_of_results,
    figures_of_summary,
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
STATS = (
    "Type,Name,Request Count,Failure Count,Median Response Time,Requests/s,50%,95%,99%\n"
    "audio,dry,37,1,0,2.1,0,0,330\n"
    ",Aggregated,148,1,160,8.3,160,1300,1700\n"
)
FACTS: dict[str, Any] = {"gpus": [], "cpus": 2, "commit": "abc", "command": "python -m x"}


def test_locusts_files_are_read_over_time(tmp_path: Path) -> None:
    (tmp_path / "locust_stats_history.csv").write_text(HISTORY, encoding="utf-8")
    (tmp_path / "locust_stats.csv").write_text(STATS, encoding="utf-8")
    found = history(tmp_path)
    assert found["at_s"] == [0, 1]
    assert found["users"] == [2, 4]
    assert found["streams_per_s"] == [0.0, 2.5]
    assert found["first_playable_p95_ms"] == [0.0, 40.0]
    facts = {**FACTS, "shape": "spike", "users": 4, "minutes": 0.3}
    text = report.locust(tmp_path, facts, rows(tmp_path), found)
    assert "| dry | 37 | 1 | 2.10 | 0.0 | 0.0 | 330.0 |" in text
    assert (tmp_path / "report.md").exists()


def test_locust_that_left_nothing_has_no_rows(tmp_path: Path) -> None:
    assert rows(tmp_path) == []
    assert history(tmp_path)["at_s"] == []


def test_both_clients_stand_beside_each_other(tmp_path: Path) -> None:
    quantiles = {"p50": 20.0, "p95": 30.0, "p99": None}
    names = ("ttfb_ms", "first_playable_ms", "audible_ttfa_ms", "end_to_end_ms")
    summary: dict[str, Any] = dict.fromkeys((*names, "scheduling_lag_ms"), quantiles)
    summary |= {"scheduled_requests": 5, "audio_successful_requests": 4, "underrun_requests": 1}
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
