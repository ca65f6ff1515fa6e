"""Where a closed loop's time goes, by what was seen beside it."""

import os
import time
from dataclasses import replace
from typing import Any

import pytest

from load_tests.curve import tables
from load_tests.curve.beside import (
    busy_within,
    clients,
    first_audio_parts,
    gpus_within,
    parts,
    requests_of,
    way,
    work_of,
)
from load_tests.curve.cores import Busy
from load_tests.loops.fleet import Fleet
from load_tests.loops.runner import ClosedLoop, Run
from load_tests.reports.circumstances import million_ms, million_ms_together, places
from load_tests.servers.gpu_watch import GpuReading, reading_of
from load_tests.servers.looks import Look
from load_tests.servers.processes import ServerProcess
from tests.unit.load_tests.values import at, result


def look(at_s: float, counts: dict[str, int], work: dict[str, dict[str, float]]) -> Look:
    told = {name: {"talker": counters} for name, counters in work.items()}
    return Look(at_s, {"Fused": counts}, {"Fused": told} if told else {}, {})


def test_streams_of_replicas_are_counted_where_all_of_them_answered() -> None:
    looks = [
        look(1.0, {"a": 60, "b": 68}, {}),
        look(1.1, {"a": 64}, {}),
        look(1.2, {"a": 48, "b": 80}, {}),
    ]
    assert requests_of(looks) == {"Fused": {"each": [54, 74], "away": 10.0, "far": 0.5}}


def test_work_is_what_was_done_between_the_first_look_and_the_last() -> None:
    begun = {"frames": 100.0, "steps": 10.0, "step_s": 1.0}
    done = {"frames": 1380.0, "steps": 30.0, "step_s": 1.12}
    looks = [
        look(1.0, {}, {"a": begun, "b": begun}),
        look(2.0, {}, {}),
        look(3.0, {}, {"a": done, "b": begun}),
    ]
    first, second = work_of(looks)["talker"]
    assert first == {
        "frames_per_s": 640.0,
        "steps_per_s": 10.0,
        "frames_per_step": 64.0,
        "step_ms": 6.0,
    }
    assert second["frames_per_s"] == 0.0
    assert second["step_ms"] is None


def test_a_way_has_what_no_stage_accounts_for() -> None:
    one = replace(
        result(),
        arrivals=tuple(at((0.05, 60))),
        server_s={"talker": 0.01, "stages": 0.03, "ingress": 0.04},
    )
    found = way(Run(ClosedLoop(1, 1), [one]))
    assert found["client"][0] == pytest.approx(50.0)
    assert found["outside"][0] == pytest.approx(10.0)
    assert found["to stages"][0] == pytest.approx(10.0)


def test_the_parts_of_a_window_show_when_less_was_received() -> None:
    # Ten frames a second for four seconds, of which the third brings nothing.
    frames = [10 * second + n for second in (0, 1, 3) for n in range(10)]
    arrivals = at(*((0.05 + each / 10, count + 1) for count, each in enumerate(frames)))
    one = replace(result(), arrivals=tuple(arrivals))
    begin_s = one.sent_at_s
    found = parts(Run(ClosedLoop(1, 1), [one]), (begin_s, begin_s + 4.0))
    assert found == pytest.approx([0.8, 0.8, 0.0, 0.8])


def test_the_first_audio_of_a_quarter_is_that_of_what_was_sent_in_it() -> None:
    results = [result(sent_at_s=100.5), result(sent_at_s=102.5, error="truncated")]
    results.append(result(sent_at_s=103.0, arrivals=tuple(at((0.3, 1), (0.5, 25)))))
    run = Run(ClosedLoop(1, 3), results, window=(100.0, 104.0))
    assert first_audio_parts(run, run.window) == [100.0, None, None, 300.0]


def test_a_busy_process_is_seen_with_its_threads() -> None:
    me = [ServerProcess(os.getpid(), "client", 0)]
    before = Busy.now(me)
    while time.perf_counter() - before.at_s < 0.4:
        million_ms()
    seen = busy_within([before, Busy.now(me)], (before.at_s, time.perf_counter()))
    assert seen is not None
    (process,) = seen["processes"]
    assert process["kind"] == "client"
    assert process["cores"] + process["waited"] > 0.5
    assert process["threads"][0] > 0.1
    assert seen["machine"]["busy"] > 0.1


def test_the_clients_are_the_fleet() -> None:
    before = len(clients())
    with Fleet(2):
        assert len(clients()) == before + 2


def test_what_nvidia_smi_says() -> None:
    said = reading_of("1, 1980, 512.40, 97, 61, 0x0000000000000004\n", 3.0)
    assert said == GpuReading(3.0, 1, 1980.0, 512.4, 97.0, 61.0, 4)
    # Idle, and clocks that were asked for, hold nothing down.
    assert reading_of("0, 345, 70.1, 0, 30, 0x0000000000000003", 3.0) == GpuReading(
        3.0, 0, 345.0, 70.1, 0.0, 30.0, 0
    )
    assert reading_of("0, 345, 70.1, 0, 30", 3.0) is not None
    assert reading_of('Field "clocks_event_reasons.active" is not a valid field', 3.0) is None
    assert said is not None
    (gpu,) = gpus_within([said, replace(said, sm_mhz=1500.0, held_down=8)], (2.0, 4.0))
    assert (gpu["sm_mhz"], gpu["least_sm_mhz"], gpu["held_down"]) == (1740, 1500, "0xc")


def test_a_machine_says_where_its_cores_are_and_how_fast_together() -> None:
    found = places()
    assert found["numa_nodes"] >= 1
    assert found["threads_per_core"] >= 1
    one = million_ms_together(1)
    assert one is not None
    assert one > 1.0


def row(gpus: int, frames: float, steps: float) -> dict[str, Any]:
    work = {"frames_per_s": frames, "steps_per_s": steps, "frames_per_step": None, "step_ms": 7.0}
    return {
        "placement": "fused",
        "gpus": gpus,
        "load": "closed, 64 per GPU",
        "beside": {
            "window_s": 1.7,
            "parts_audio_s_per_s": [700.0] * 4,
            "requests": {"Fused": {"each": [64.0] * gpus, "away": 0.0, "far": 0.0}},
            "work": {"talker": [work] * gpus},
            "way_ms": {"client": [25.0, 40.0, 27.0]},
            "busy": {
                "processes": [
                    {
                        "kind": "fused child",
                        "pid": number,
                        "cores": 0.98,
                        "threads": [0.6, 0.25, 0.1],
                        "waited": 0.02,
                    }
                    for number in range(gpus)
                ],
                "by_kind": {"fused child": 0.98 * gpus, "standby": 1.0},
                "machine": {"busy": 5.0, "stolen": 0.1},
            },
            "million_ms": 72.0,
            "gpus": [],
        },
    }


def test_a_loss_is_told_as_steps_and_streams_in_each() -> None:
    said = "\n".join(tables.accounts([row(2, 8064.0, 135.0), row(1, 9000.0, 150.0)]))
    assert (
        "fused, closed, 64 per GPU, 2 GPUs: a replica makes 90 % of one GPU's frames: 90 % of its"
        " steps/s, with 100 % of the streams in each" in said
    )
    assert "25.0 / 40.0 (27.0)" in said
    stage = "fused child 0.98 (0.60 0.25 0.10; 2 %)"
    assert f"| 5.0; 0.1 | 72.0 | {stage}; {stage} |" in said
    assert "standby 1.0" in said
    assert tables.accounts([{"placement": "empty"}]) == []
