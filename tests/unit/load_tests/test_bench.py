"""The benchmark: its parts, their results, the report."""

import math
from pathlib import Path
from typing import Any

import pytest

from load_tests import bench, jobs
from load_tests.jobs import Job, Store, plan
from load_tests.loops.options import ladders_of
from load_tests.loops.runner import ClosedLoop, OpenLoop
from load_tests.reports.bench_report import compose
from load_tests.reports.results import Results
from load_tests.reports.targets import TARGETS, target_table
from load_tests.servers.measured import Measured, resume
from tests.unit.load_tests.values import (
    frame_row,
    late,
    level,
)


def arguments(tmp_path: Path, *more: str) -> Any:
    places = ["--out", str(tmp_path / "out"), "--checkpoints", str(tmp_path / "checkpoints")]
    return bench.parse([*places, *more])


def test_a_benchmark_has_a_job_for_each_part_size_and_placement(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--peers", str(tmp_path), "--seeds", "3", "4")
    names = [job.name for job in plan(args, jobs.PARTS)]
    assert len(names) == len(set(names)) == 2 + 1 + 2 + 2 + 3 * 4 + 2 + 4
    (many, _) = plan(args, ["throughput"])
    assert many.name == "throughput-fused-1.7b"
    given = " ".join(many.arguments)
    assert "--profile throughput --closed 64 256 --open" in given
    (http,) = [job for job in plan(args, ["http"]) if job.name == "http-split-0.6b"]
    said = " ".join(http.arguments)
    assert "--placements split --size 0.6b" in said
    assert "--seeds 3 4 --seed 3" in said
    assert not list(plan(arguments(tmp_path), ["peers"]))


def script(tmp_path: Path, name: str, body: str, *more: str) -> Job:
    """A job whose process counts its runs in a file and then does `body`; `out` is its file."""
    file = tmp_path / f"{name}.py"
    file.write_text(
        "import json, pathlib, sys, time\n"
        f"runs = pathlib.Path({str(tmp_path / name)!r})\n"
        "runs.write_text(runs.read_text() + 'x' if runs.exists() else 'x')\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--out') + 1])\n" + body + "\n"
    )
    return Job(name, (str(file), *more), needs_s=5)


def runs(tmp_path: Path, name: str) -> int:
    file = tmp_path / name
    return len(file.read_text()) if file.exists() else 0


WRITE = "out.write_text(json.dumps({'figure': 7}))"


def test_a_part_that_was_done_is_not_repeated_unless_asked(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--budget-s", "60")
    store = Store(args.out)
    job = script(tmp_path, "part", WRITE)
    assert bench.run_all(args, [job], store) == {}
    assert bench.run_all(args, [job], store) == {}
    assert runs(tmp_path, "part") == 1
    stored = store.all()["part"]
    assert (stored["figure"], stored["complete"]) == (7, True)
    # With other options it is another measurement.
    assert bench.run_all(args, [script(tmp_path, "part", WRITE, "--other")], store) == {}
    assert runs(tmp_path, "part") == 2
    again = arguments(tmp_path, "--budget-s", "60", "--again")
    assert bench.run_all(again, [script(tmp_path, "part", WRITE, "--other")], store) == {}
    assert runs(tmp_path, "part") == 3


def test_a_part_that_fails_or_has_no_time_is_named_and_the_others_run(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--budget-s", "60")
    store = Store(args.out)
    broken = script(tmp_path, "broken", "sys.exit('no such device')")
    long = Job("long", (), needs_s=1000)
    good = script(tmp_path, "good", WRITE)
    missing = bench.run_all(args, [broken, long, good], store)
    assert list(missing) == ["broken", "long"]
    assert "ended with 1" in missing["broken"].reason
    assert "no such device" in missing["broken"].reason
    assert not missing["broken"].goes_on
    assert missing["long"].goes_on
    assert list(store.all()) == ["good"]


def test_a_part_beyond_the_budget_is_ended(tmp_path: Path) -> None:
    args = arguments(tmp_path, "--budget-s", "6")
    job = script(tmp_path, "endless", "time.sleep(600)")
    missing = bench.run_all(args, [Job(job.name, job.arguments, needs_s=1)], Store(args.out))
    assert missing["endless"].goes_on
    assert "out of time" in missing["endless"].reason


def server(placement: str, *levels: dict[str, Any], complete: bool = True) -> dict[str, Any]:
    start = {
        "time_utc": "2026-01-01T00:00:00Z",
        "caches_empty": True,
        "ready_s": 41.5,
        "memory_before_mib": [4],
        "memory_idle_mib": [12_345],
        "memory_peak_mib": [23_456],
    }
    return {
        "placement": placement,
        "config": {"a": 1},
        "health": {"config_digest": "c0ffee"},
        "starts": [start],
        "levels": list(levels),
        "notes": [],
        "complete": complete,
    }


def test_a_server_measurement_goes_on_with_the_levels_that_are_missing() -> None:
    before = {
        "facts": facts(),
        "servers": [
            server(
                "fused",
                level("closed", 16),
                level("closed", 64, stopped="after 3 s"),
                level("open", 20.0, 1, first_playable_s=late(0.5, None)),
                complete=False,
            )
        ],
    }
    measured = Measured("fused", {"a": 1})
    resume([measured], before, facts(time_utc="later"))
    # The level that was cut short is repeated; the open one had a failed request at its p95.
    assert measured.done() == {ClosedLoop(16, 20): 0.03, OpenLoop(20.0, 5.0, 2.0, 1): math.inf}
    assert measured.starts[0].ready_s == 41.5
    assert len(measured.as_json(requests=False)["levels"]) == 2


@pytest.mark.parametrize(
    ("config", "changes"),
    [({"a": 2}, {}), ({"a": 1}, {"workload": {"seed": 9}}), ({"a": 1}, {"commit": "def456"})],
)
def test_what_was_measured_otherwise_is_not_gone_on_with(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    before = {"facts": facts(), "servers": [server("fused", level("closed", 16), complete=False)]}
    measured = Measured("fused", config)
    resume([measured], before, facts(**changes))
    assert measured.done() == {}
    assert measured.starts == []


def test_a_variant_is_measured_beside_what_it_differs_from() -> None:
    from load_tests.serve_bench import measurements
    from load_tests.serve_bench import parse as parse_serve_bench

    asked = ["--placements", "fused", "split", "--override", "talker.max_num_seqs=8"]
    both = measurements(parse_serve_bench([*asked, "--variant", "deterministic=true"]))
    assert [each.name for each in both] == [
        "fused", "fused, deterministic=true", "split", "split, deterministic=true",
    ]  # fmt: skip
    args = [each.config["applications"][0]["args"] for each in both]
    assert ["deterministic" in arg for arg in args] == [False, True, False, True]
    assert {arg["talker"]["max_num_seqs"] for arg in args} == {8}


def test_every_seed_of_an_open_level_is_run() -> None:
    from load_tests.serve_bench import parse as parse_serve_bench

    assert ladders_of(parse_serve_bench(["--seeds", "4", "5"])).seeds == (4, 5)
    assert ladders_of(parse_serve_bench(["--seed", "6"])).seeds == (6,)


def facts(**changes: Any) -> dict[str, Any]:
    gpu = {"name": "H200", "driver_version": "580.1", "memory.total": "143771"}
    workload = {"min_frames": 60, "max_frames": 60, "response_format": "pcm"}
    common = {
        "time_utc": "2026-01-02T03:04:05Z",
        "command": "python -m load_tests.part",
        "gpus": [gpu],
        "cpus": 16,
        "python_ms": 31.5,
        "python": "3.12.1",
        "versions": {"torch": "2.11"},
        "commit": "abc123",
        "workload": workload,
    }
    return {**common, **changes}


def stored_results() -> dict[str, dict[str, Any]]:
    levels = [
        level("closed", 1, first_playable_s=late(0.0115, 0.02)),
        level("closed", 64, audio_s_per_s_window=650.0),
        level("open", 20, 0, first_playable_s=late(0.015, 0.020)),
        level("open", 20, 1, first_playable_s=late(0.017, 0.029)),
        level("open", 20, 2, first_playable_s=late(0.0155, 0.027)),
        level("open", 60, 0),
        level("open", 80, 0, underruns=3),
    ]
    loop = {"streams": 64, "first_ms_p50": 20.0, "first_ms_max": 30.0, "audio_s_per_s": 731.0}
    return {
        "frame-1.7b": {
            "facts": facts(config_digest="decade"),
            "rows": [frame_row(1, 3.9).as_json(), frame_row(64, 8.1).as_json()],
            "first_audio_ms": 9.1,
            "loops": [loop],
        },
        "predictor-1.7b": {
            "facts": facts(),
            "rows": [
                {
                    "batch": n,
                    "floor": 0.56,
                    "eager": 12.0,
                    "default": ms,
                    "default same": 1.0,
                    "default error": 0.8,
                }
                for n, ms in ((1, 1.4), (64, 2.6))
            ],
        },
        "decoder": {
            "facts": facts(),
            "dtypes": {"bf16": [{"streams": 1, "frames": t, "ms": 1.0 + t} for t in (1, 12)]},
        },
        "first-audio-1.7b": {
            "facts": facts(),
            "medians_ms": {"queued": 0.5, "launched": 2.0, "sum": 8.2},
        },
        "http-fused-1.7b": {"facts": facts(), "servers": [server("fused", *levels)]},
        "throughput-fused-1.7b": {
            "facts": facts(),
            "servers": [server("fused", level("closed", 256, audio_s_per_s_window=1520.0))],
        },
        "startup-fused-1.7b": {"facts": facts(), "servers": [server("fused")]},
        "peers-ours-1-1.7b": {
            "facts": facts(),
            "peer": "ours",
            "chunk": 1,
            "frames": 100,
            "first_audio_ms": 9.1,
            "rtf": 0.044,
            "audio_s_per_s": 22.7,
        },
    }


def test_a_report_is_composed_from_what_is_stored(tmp_path: Path) -> None:
    text = compose(tmp_path, stored_results(), {"memory-fused-1.7b": "not run"})
    assert (tmp_path / "report.md").read_text() == text
    for line in (
        "| GPU | H200, 143771 MiB |",
        "| driver | 580.1 |",
        "| commit | abc123 |",
        "| a million additions in Python, ms | 31.5 |",
        "| configuration hash | decade (frame-1.7b); c0ffee (fused-1.7b); c0ffee (fused-1.7b,"
        " profile throughput) |",
        "| seeds of open loops | 0, 1, 2 |",
        "| open, 20 | 30 | 0 | 15.5 (15.0 to 17.0) | 27.0 (20.0 to 29.0) | - | 100 | 0 (0)"
        " | 40.0 |",
        "| `fused` | 1.7b | as over HTTP above | empty | 41.5 | 12,345 | 23,456 |",
        "| `fused` | 1.7b | profile `throughput` | empty | 41.5 | 12,345 | 23,456 |",
        "## Over HTTP, `fused`, profile `throughput`, 1.7b",
        "| 64 | 20.0 | 30.0 | 731 |",
        "| 1 | 2.00 | 13.00 |",
        "| 1.7b | 0.50 | 2.00 | 8.20 |",
        "| ours, chunks of 1 | 100 | 9.1 | 0.044 |",
        "- `memory-fused-1.7b`: not run",
    ):
        assert line in text.splitlines()


def test_a_report_shows_that_parts_were_measured_with_different_commits(tmp_path: Path) -> None:
    results = stored_results()
    results["decoder"]["facts"] = facts(commit="def456")
    assert "| commit | abc123; def456 |" in compose(tmp_path, results, {})


def test_the_targets_say_met_missed_or_not_measured() -> None:
    rows = target_table(Results(stored_results())).splitlines()[2:]
    assert len(rows) == len(TARGETS)
    assert rows == [
        "| `fused`, one stream, p50 | <= 12 ms | 11.5 | met |",
        "| `split`, one stream, p50 | <= 18 ms | - | not measured |",
        "| `fused`, 20 requests/s, p50 | <= 16 ms | 15.5 | met |",
        "| `fused`, 20 requests/s, p95 | <= 28 ms | 27.0 | met |",
        "| `fused`, p95 <= 100 ms, no underrun, up to | >= 60 requests/s | 60.0 | met |",
        "| `fused`, 64 streams | >= 800 audio-s/s | 650 | **missed** |",
        "| `fused`, 256 streams | >= 1,500 audio-s/s | - | not measured |",
        "| the same with profile `throughput`, 64 streams | >= 800 audio-s/s | - | not measured |",
        "| the same with profile `throughput`, 256 streams | >= 1,500 audio-s/s | 1,520 | met |",
        "| code predictor, 1 stream | <= 1.5 ms | 1.40 | met |",
        "| code predictor, 64 streams | <= 2.5 ms | 2.60 | **missed** |",
        "| whole frame step, 1 stream | <= 4 ms | 3.90 | met |",
        "| whole frame step, 64 streams | <= 8 ms | 8.10 | **missed** |",
    ]
