"""What a run is published as."""

import json
import os
from pathlib import Path

import pytest

from load_tests.loops.client import server_timings
from load_tests.loops.level import Level
from load_tests.loops.runner import OpenLoop, Run
from load_tests.reports import circumstances, files, report
from tests.unit.load_tests.values import (
    result,
)


def test_a_report_says_what_failed_and_json_has_no_infinity(tmp_path: Path) -> None:
    run = Run(OpenLoop(5, 1), window=(100.0, 101.0))
    run.results += [result(), result(error="status", status=429, detail="429: full", arrivals=())]
    level = Level.of(run)
    facts = {
        **circumstances.environment("abc"),
        "health": {"config_digest": "0123", "placement": "split"},
    }
    text = report.markdown([level], facts)
    assert "| open, 5 requests/s | 2 | 1 | 100.0 / failed / failed |" in text
    assert "5 requests/s: 1 status; the first: 429: full" in text
    assert "commit abc, config 0123, placement split" in text
    out = tmp_path / "folder" / "out.json"
    files.write_json(out, {**facts, "levels": [level.as_json(requests=True)]})
    read = json.loads(out.read_text(), parse_constant=pytest.fail)
    (entry,) = read["levels"]
    assert entry["first_playable_s"] == {"p50": 0.1, "p95": None, "p99": None, "mean": None}
    assert [item["status"] for item in entry["results"]] == [200, 429]


def test_server_timings_are_read_from_their_header() -> None:
    header = (
        "talker;dur=9.50, cache;desc=hit, stages;desc=all;dur=12, broken;dur=x, ingress;dur=14.25"
    )
    assert server_timings(header) == {"talker": 0.0095, "stages": 0.012, "ingress": 0.01425}
    assert server_timings("") == {}


def test_a_report_says_where_first_audio_spends_its_time() -> None:
    run = Run(OpenLoop(5, 1), window=(100.0, 101.0))
    run.results += [result(server_s={"stages": 0.08, "ingress": 0.09}), result(index=1)]
    text = "\n".join(report.way([Level.of(run)]))
    assert "| load | client | ingress | stages |" in text
    assert "| open, 5 requests/s | 100.0 | 90.0 | 80.0 |" in text
    silent = Run(OpenLoop(5, 1), window=(100.0, 101.0))
    silent.results.append(result())
    assert report.way([Level.of(silent)]) == []


def test_only_the_gpus_that_are_visible_are_told_of(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\nfor gpu in 0 1 2 3; do\n"
        'case "$*" in *--id=*"$gpu"*) echo 10$gpu ;; *--id*) ;; *) echo 10$gpu ;; esac\n'
        "done\n"
    )
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for visible, used in (
        (None, [100, 101, 102, 103]),
        ("2", [102]),
        ("1,3", [101, 103]),
        ("", []),
    ):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert circumstances.gpu_memory_used_mib() == used
