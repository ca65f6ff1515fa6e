"""The curve's arithmetic, and its clients against the server that has no model."""

import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, cast

import pytest

from load_tests.curve import filling, summary
from load_tests.curve.__main__ import parse, rooms, settings
from load_tests.curve.added import as_json, grouped
from load_tests.curve.added import table as added_table
from load_tests.curve.compose import compose
from load_tests.curve.empty import empty_server, pieces
from load_tests.curve.figures import (
    Refusals,
    back_after_s,
    efficiency,
    refused_apart,
    withheld,
)
from load_tests.curve.filling import fill_of, full_at
from load_tests.curve.measure import Scale, row_of, waiting
from load_tests.loops.fleet import Fleet, merged, parts_of
from load_tests.loops.runner import BurstLoop, ClosedLoop, OpenLoop, Run
from load_tests.loops.workload import Workload
from load_tests.reports import plots
from load_tests.servers.child import REPOSITORY
from load_tests.servers.server import Server
from load_tests.servers.starts import ReplicaStart
from load_tests.servers.steering import Reading, Steering, with_replicas
from serve_app.serve_config import find_problems
from tests.unit.load_tests.values import at, result

START: Final[dict[str, Any]] = {
    "deployment": "Fused",
    "parts": {
        **{"replica": 1.0, "standby": 0.5, "imports": 0.5, "kernels": 0.0},
        **{"decoder weights": 1.0, "talker weights": 1.0, "decoder graphs": 1.0},
        **{"decoder trials": 3.0, "rehearsal": 1.0},
    },
}


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
    facts = {"gpus": [], "cpus": 2, "commit": "abc", "time_utc": "now"}
    added = {**row, "placement": "fused", "gpus": 2, "load": "1 -> 2 replicas"}
    added |= {"ready_s": {"Fused": [12.3]}, "starts": [START], "until_ready": row}
    starts = [{"placement": "fused", "ready_s": 25.0, "ingresses": 3, "replicas": [START]}]
    stored = {"facts": facts, "commands": ["c", "d"], "rows": [row, added], "starts": starts}
    compose(tmp_path, stored)
    report = (tmp_path / "report.md").read_text()
    assert "    c\n    d\n" in report
    assert "| empty | 0 | closed, 4 | 4 streams | 8 | 0 |" in report
    assert "- fused: ready after 25.0 s, 3 ingresses\n" in report
    assert "| fused | 1 -> 2 replicas | Fused (standby) | 12.3 | 3.3 |" in report
    assert "An empty server carried" in report


def test_parts_of_a_start_are_told_apart() -> None:
    groups = grouped({**START["parts"], "something new": 0.5})
    assert groups["process"] == 1.5
    assert groups["weights"] == 2.0
    assert groups["cuDNN trials"] == 3.0
    assert groups["other"] == 0.5
    assert sum(groups.values()) == sum(START["parts"].values()) + 0.5


def test_every_part_that_a_stage_tells_of_has_a_column() -> None:
    sources = REPOSITORY.glob("serve_app/models/**/*.py")
    laps = {
        name
        for path in sources
        for call in re.findall(r"start_times\.lap\(([^)]*)\)", path.read_text(encoding="utf-8"))
        for name in re.findall(r'"([a-z A-Z]+)"', call)
    }
    assert len(laps) > 10
    assert [lap for lap in laps if grouped({lap: 1.0})["other"]] == []


def test_replicas_that_started_together_are_told_in_the_order_in_which_they_ran() -> None:
    late = ReplicaStart("Fused", "a.log", {"imports": 9.0}, "2026-11-26 18:00:10,000")
    early = ReplicaStart("Fused", "b.log", {"standby": 5.0}, "2026-11-26 18:00:06,000")
    row = {"placement": "fused", "gpus": 4, "load": "2 -> 4 replicas"}
    row |= {"ready_s": {"Fused": [7.0, 11.0]}, "starts": as_json([late, early])}
    said = "\n".join(added_table({"rows": [row]}))
    assert "| fused | 2 -> 4 replicas | Fused (standby) | 7.0 | 2.0 | 5.0 |" in said
    assert "| fused | 2 -> 4 replicas | Fused | 11.0 | 2.0 | 0.0 | 9.0 |" in said


def curve_row(load: str, gpus: int, **figures: Any) -> dict[str, Any]:
    usual = {"audio_s_per_s": 800.0 * gpus, "first_p50_s": 0.03, "first_p95_s": 0.04}
    usual |= {"requests": 100, "failures": 0, "dry_over_50_ms": 0, "client_lag_p99_s": 0.001}
    return {"placement": "fused", "gpus": gpus, "load": load, "plan": "p", **usual, **figures}


def test_the_table_of_a_placement_has_all_loads_and_shows_what_is_missed() -> None:
    loss = {"victim": "fused child", "hit": True, "noticed_after_s": 0.3, "failures": 1}
    loss |= {"replaced_after_s": 14.0, "back_after_s": None}
    rows = [
        curve_row("closed, 256", 0, placement="empty", audio_s_per_s=32000.0),
        curve_row("closed, 64 per GPU", 1),
        curve_row("burst, 64 per GPU, 1", 1, first_p50_s=0.06),
        curve_row("burst, 64 per GPU, 2", 1, first_p50_s=0.08),
        curve_row("1 -> 4 replicas", 4, ready_s={}),
        curve_row("closed, 64 per GPU", 4, audio_s_per_s=3000.0, dry_over_50_ms=2),
        curve_row("burst, 64 per GPU, 1", 4, first_p95_s=None, client_lag_p99_s=math.nan),
        curve_row("loss of a replica", 4, **loss),
    ]
    said = "\n".join(summary.report(rows))
    assert "| closed, 64 per GPU | 30 / 40 | 800 | 30 / 40 | 3,000 | **93.8 %** | 1.00 |" in said
    assert "| burst, 64 per GPU | 60 to 80 / 40 | 800 | 30 / failed | 3,200 |  |  |" in said
    assert "**1 of 700 requests failed**" in said
    assert "**2 of 100 (closed, 64 per GPU, 4 GPUs)**" in said
    assert "noticed after 0.3 s, replaced after 14.0 s, throughput back at 95 % after -" in said
    assert "An empty server carried 32,000 audio-s/s" in said
    assert "their own lag was 1 ms at most" in said
    assert "10 times the most" in said


def test_what_is_left_of_a_curve_is_what_has_no_row() -> None:
    scale = Scale(per_gpu=(2, 4), burst=3, bursts=1)
    closed = [curve_row("closed, 2 per GPU", 2), curve_row("closed, 4 per GPU", 1)]
    assert waiting(scale, closed, "fused", 2) == [
        *("closed, 4 per GPU", "open, 80%", "burst, 3 per GPU, 1", "loss of a replica")
    ]
    assert waiting(scale, closed, "split", 1) == scale.names(1)
    assert "loss of a replica" not in scale.names(1)


@pytest.mark.parametrize("placement", ["fused", "split"])
@pytest.mark.parametrize(("gpus", "cores"), [(1, 32), (4, 64), (8, 128), (4, 2)])
def test_all_that_a_server_may_get_fits_the_machine(placement: str, gpus: int, cores: int) -> None:
    args = parse(["--out", "here", "--per-gpu", "64", "256"])
    config = settings(args, placement, gpus, cores)
    assert list(find_problems(config)) == []
    stated = config["applications"][0]
    nodes = rooms(args, placement, gpus, cores)
    assert bool(nodes) == (placement == "split" and gpus > 1)
    if nodes:
        deployments = {d["name"]: d for d in stated["deployments"]}
        count = deployments["Ingress"]["autoscaling_config"]["max_replicas"]
        assert count * stated["args"]["ingress"]["num_cpus"] <= nodes[0].cpus
        parts = ("talker", "code_predictor", "speech_decoder")
        assert all(
            deployments[n]["max_replicas_per_node"] == 1 for n in ("Talker", "CodePredictor")
        )
        assert sum(stated["args"][part]["num_cpus"] for part in parts) <= nodes[1].cpus
        assert stated["args"]["talker"]["node_labels"] == nodes[1].labels
        assert stated["args"]["ingress"]["node_labels"] == nodes[0].labels


def test_a_replica_that_ran_before_it_was_waited_for_has_its_own_time() -> None:
    steering = Steering(cast(Server, None))
    counts = [(1.0, 1, 1), (6.0, 1, 2), (15.0, 2, 2)]
    steering.readings += [
        Reading(at_s, {"Talker": talkers, "CodePredictor": predictors}, {})
        for at_s, talkers, predictors in counts
    ]
    assert steering.wait_for({"Talker": 2}, 0.0, since_s=2.0) == 15.0
    assert steering.wait_for({"CodePredictor": 2}, 0.0, since_s=2.0) == 6.0
    assert steering.wait_for({"Talker": 3}, 0.0, since_s=2.0) is None
    assert steering.wait_for({"Talker": 2}, 0.0) is None


def busy_row(gpus: int, ingress: float, haproxy: float) -> dict[str, Any]:
    def process(kind: str, cores: float) -> dict[str, Any]:
        return {"kind": kind, "cores": cores, "threads": [cores / 2], "waited": 0.0}

    processes = [
        *(process("fused child", 1.05 - 0.1 * number) for number in range(gpus)),
        process("ingress", ingress),
        process("ingress", ingress / 2),
        process("haproxy", haproxy),
        process("client", 0.1),
    ]
    busy = {
        "cores": 3.0 * gpus + 0.1,
        "by_kind": {"client": 0.1},
        "processes": processes,
        "machine": {"busy": 4.0 * gpus},
    }
    return curve_row("closed, 64 per GPU", gpus, beside={"busy": busy})


def test_what_fills_up_next_is_where_a_line_over_the_gpus_ends() -> None:
    rows = [busy_row(1, 0.1, 0.4), busy_row(4, 0.4, 1.6), curve_row("open, 80%", 1)]
    fills = [fill for row in rows if (fill := fill_of(row, 64)) is not None]
    assert [fill.own["process of the stages"] for fill in fills] == [1.05, 1.05]
    assert full_at(fills, "fullest ingress") == pytest.approx(10.0)
    # A thread of its four is fuller than all of them in the mean.
    assert fills[1].shared["HAProxy"] == pytest.approx(0.8)
    assert full_at(fills, "HAProxy") == pytest.approx(5.0)
    assert full_at(fills[:1], "machine's cores") == pytest.approx(16.0)
    assert full_at(fills, "fullest client") is None
    said = "\n".join(filling.report(rows, 64))
    assert "| fused, closed, 64 per GPU | 4 | 12.0 | 3.0 | 0.1 | 105 % | 40 % | 80 % |" in said
    assert (
        "- fused, closed, 64 per GPU, 4 GPUs: full first is the process of the stages (105 %; each"
        " GPU has its own). Of what all GPUs share, by the line through 1 and 4 GPUs, full: HAProxy"
        " with 5, fullest ingress with 10, machine's cores with 16" in said
    )


def test_the_plot_is_made_for_a_page(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    aims: dict[str, Any] = {"least_share": 0.95, "most_p95": 1.2, "notes": {}}
    rows = [curve_row("closed, 64 per GPU", gpus) for gpus in (1, 2, 4)]
    rows.append(curve_row("closed, 256 per GPU", 1))
    rows.append(curve_row("closed, 256 per GPU", 2, audio_s_per_s=900.0, first_p95_s=None))
    assert plots.curve(tmp_path / "curve.png", [*rows, curve_row("open, 80%", 1)], **aims)
    height, width, _ = image.imread(tmp_path / "curve.png").shape
    assert width >= 1600
    assert width / height > 2
    assert not plots.curve(tmp_path / "none.png", [curve_row("closed, 4", 0)], **aims)


def seen_row(gpus: int, busy: float, stolen: float, **beside: Any) -> dict[str, Any]:
    machine = {"busy": busy, "stolen": stolen}
    beside["busy"] = {"processes": (), "machine": machine}
    return curve_row("closed, 64 per GPU", gpus, beside=beside)


def test_what_the_host_withheld_stands_below_the_table() -> None:
    said = "\n".join(summary.report([seen_row(1, 5.0, 0.2), seen_row(4, 12.9, 4.9)]))
    assert (
        "  - closed, 64 per GPU: 0.2 of 5.2 (4 %) with one GPU, **4.9 of 17.8 (28 %)** with 4 GPUs"
        in said
    )
    assert "withheld" not in "\n".join(summary.report([seen_row(1, 5.0, 0.2)]))
    assert withheld(curve_row("open, 80%", 1)) is None


def test_a_load_that_a_few_moments_made_is_told() -> None:
    uneven = {"parts_audio_s_per_s": [1400, 1100, 1400], "parts_first_p95_ms": [100, 600.4, None]}
    even = {"parts_audio_s_per_s": [1400, 1300], "parts_first_p95_ms": [60, 100]}
    said = "\n".join(summary.report([seen_row(1, 5.0, 0.2, **uneven), seen_row(2, 9, 0, **even)]))
    assert (
        "  - closed, 64 per GPU, one GPU: 1,400, 1,100, 1,400 audio-s/s;"
        " first audio p95 100, 600, - ms" in said
    )
    assert "64 per GPU, 2 GPUs" not in said


def test_the_burst_that_a_closed_loop_begins_with_is_a_figure_of_its_own() -> None:
    late = replace(result(), arrivals=tuple(at((0.9, 25))))
    run = Run(ClosedLoop(1, 1), [result()], [late], (101.0, 110.0), 1, [0.001])
    row = row_of("fused", 1, "closed, 1 per GPU", run)
    assert (row["first_p95_s"], row["begin_first_p95_s"]) == (0.1, 0.9)
    assert (
        row_of("fused", 1, "open, 80%", replace(run, plan=OpenLoop(1.0, 1.0)))["begin_first_p95_s"]
        is None
    )
    row["load"] = "closed, 64 per GPU"
    assert "not in the table, ms: closed, 64 per GPU, 900 with one GPU" in "\n".join(
        summary.report([row])
    )


def test_who_is_refused_at_a_loss_has_not_failed() -> None:
    refused: dict[str, Any] = {"status": 429, "error": "status", "arrivals": ()}
    results = [
        result(),
        result(waited_s=2.0, refusals_s=(0.01, 0.01)),
        result(error="truncated"),
        result(**refused, refusals_s=(0.01,)),
        result(status=503, error="status", arrivals=()),
    ]
    let_in, refusals = refused_apart(results)
    assert [each.error for each in let_in] == ["", "", "truncated", "status"]
    assert refusals == Refusals(refusals=3, asked_again=1, given_up=1, wait_p95_s=2.0)
    row = curve_row("loss of a replica", 2, victim="fused child", hit=True, **asdict(refusals))
    row |= {"noticed_after_s": 0.3, "replaced_after_s": 14.0, "back_after_s": None}
    assert (
        "0 of 100 requests failed, 1 of them let in after they were refused and asked again"
        " (3 refusals, p95 2.0 s later; 1 more still asked at the end); noticed"
        in "\n".join(summary.report([row]))
    )
