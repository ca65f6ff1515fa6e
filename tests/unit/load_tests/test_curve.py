"""The curve's arithmetic, and its clients against the server that has no model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from load_tests.curve.compose import compose
from load_tests.curve.empty import empty_server, pieces
from load_tests.curve.figures import back_after_s, efficiency
from load_tests.curve.measure import Scale, row_of
from load_tests.loops.fleet import Fleet, merged, parts_of
from load_tests.loops.runner import BurstLoop, ClosedLoop, OpenLoop, Run
from load_tests.loops.workload import Workload
from load_tests.servers.steering import with_replicas
from tests.unit.load_tests.values import at, result


def test_a_load_in_parts_is_the_load() -> None:
    closed = parts_of(ClosedLoop(10, 50), 4)
    assert [part.streams for part in closed] == [3, 3, 2, 2]  # pyright: ignore[reportAttributeAccessIssue]
    assert sum(part.requests for part in closed) == 50  # pyright: ignore[reportAttributeAccessIssue]
    opened = parts_of(OpenLoop(20.0, 8.0), 4)
    assert [part.rate_hz for part in opened] == [5.0] * 4  # pyright: ignore[reportAttributeAccessIssue]
    assert len({part.seed for part in opened}) == 4  # pyright: ignore[reportAttributeAccessIssue]
    assert len(parts_of(ClosedLoop(2, 4), 8)) == 2
    with pytest.raises(ValueError, match="one by one"):
        parts_of(BurstLoop(64, 5), 4)


def test_a_stream_never_has_fewer_requests_than_one() -> None:
    assert all(part.requests >= part.streams for part in parts_of(ClosedLoop(64, 10), 4))  # pyright: ignore[reportAttributeAccessIssue]


def test_runs_merge_where_all_of_them_had_their_load() -> None:
    plan = ClosedLoop(2, 4)
    runs = [
        Run(plan, [result()], [], (101.0, 110.0), 1, [0.001], ""),
        Run(plan, [result()], [], (102.0, 109.0), 1, [0.002], "after 5 s"),
    ]
    whole = merged(plan, runs)
    assert (whole.window, whole.max_in_flight, whole.stopped) == ((102.0, 109.0), 2, "after 5 s")
    assert len(whole.results) == 2


def test_throughput_is_back_when_it_holds_again() -> None:
    # A second of audio a second: ten seconds, six seconds of nothing, ten seconds.
    frames = 0
    arrivals = []
    for tenth in range(260):
        if not 100 <= tenth < 160:
            frames += 1
            arrivals.append((tenth / 10, frames))
    one = replace(result(), arrivals=tuple(at(*arrivals)))
    usual, back_s = back_after_s([one], (100.0, 126.0), 110.0)
    assert usual == pytest.approx(0.8, rel=0.02)
    assert back_s == pytest.approx(6.0, abs=0.5)
    assert back_after_s([one], (100.0, 115.0), 110.0)[1] is None


def test_efficiency_is_against_one_gpu_of_the_same_load() -> None:
    def row(gpus: int, rate: float, p95_s: float | None) -> dict[str, Any]:
        return {
            "placement": "fused",
            "gpus": gpus,
            "load": "closed, 64 per GPU",
            "audio_s_per_s": rate,
            "first_p95_s": p95_s,
        }

    shares = efficiency([row(1, 800.0, 0.02), row(2, 1560.0, 0.022), row(4, 3000.0, None)])
    assert [share["share"] for share in shares] == pytest.approx([1.0, 0.975, 0.9375])
    assert shares[1]["p95_ratio"] == pytest.approx(1.1)
    assert shares[2]["p95_ratio"] is None


def test_replicas_are_changed_without_touching_what_else_is_stated() -> None:
    application = {
        "name": "tts",
        "args": {"placement": "fused"},
        "deployments": [
            {"name": "Fused", "health_check_period_s": 2},
            {"name": "Ingress", "autoscaling_config": {"min_replicas": 3}},
        ],
    }
    changed = with_replicas(application, {"Fused": 2})
    fused, ingress = changed["deployments"]
    assert fused["autoscaling_config"]["min_replicas"] == 2
    assert fused["autoscaling_config"]["max_replicas"] == 2
    assert fused["health_check_period_s"] == 2
    assert ingress == application["deployments"][1]
    assert changed["args"] == application["args"]


def test_a_body_has_all_of_its_frames() -> None:
    assert list(pieces(60)) == [1, 3, 8, 12, 12, 12, 12]
    assert list(pieces(2)) == [1, 1]


def test_the_steps_of_a_host_fit_a_call() -> None:
    assert sum(Scale().seconds(gpus) for gpus in (1, 2)) < 200


def test_several_processes_receive_every_sample_of_the_empty_server(tmp_path: Path) -> None:
    plan = ClosedLoop(4, 8, warm_up=1)
    workload = Workload(min_frames=20, max_frames=20)
    with Fleet(2) as fleet, empty_server(1) as url:
        row = row_of("empty", 0, "closed, 4", fleet.run(url, workload, plan))
    assert (row["requests"], row["failures"]) == (8, 0), row["first_detail"]
    assert row["audio_s_per_s"] > 0
    facts = {"command": "c", "gpus": [], "cpus": 2, "commit": "abc", "time_utc": "now"}
    added = {**row, "placement": "fused", "gpus": 2, "load": "1 -> 2 replicas"}
    added |= {"ready_s": {"Fused": [12.3]}, "starts": ["Fused: 9.0 s in its process (imports 9.0)"]}
    starts = [{"placement": "fused", "ready_s": 25.0, "replicas": ["Fused: 8.0 s"]}]
    compose(tmp_path, {"facts": facts, "rows": [row, added], "starts": starts})
    report = (tmp_path / "report.md").read_text()
    assert "| empty | 0 | closed, 4 | 4 streams | 8 | 0 |" in report
    assert "- fused: ready after 25.0 s; Fused: 8.0 s\n" in report
    said = "ready after Fused 12.3 s\n  - Fused: 9.0 s in its process (imports 9.0)\n"
    assert f"- fused, 2 GPUs, 1 -> 2 replicas: {said}" in report
