"""The trace of a step of load: series, decisions, and what counts as a fault."""

from pathlib import Path
from typing import Any

import pytest

from load_tests.chaos.outcomes import BAD, Outcome
from load_tests.scaling import growth, report
from load_tests.scaling.step import Plan
from load_tests.scaling.trace import (
    Step,
    apart_s,
    decisions,
    first_audio_steps,
    replica_steps,
    stream_steps,
)
from load_tests.servers.steering import Reading
from serve_app.scaling.tuning import Tuning
from tests.unit.load_tests.values import result

TUNING = Tuning()
LOG = """\
INFO 2026-11-25 23:50:01,250 c -- scaling {"targets": {"Talker": 1}, "reason": "steady", "want": 1}
INFO 2026-11-25 23:50:02,000 controller 12 -- Adding 1 replica to Deployment(name='Talker')
INFO 2026-11-25 23:50:11,500 c 1 -- scaling {"targets": {"Talker": 2}, "reason": "load", "want": 2}
"""


def outcome(sent_at_s: float, first_s: float, end_s: float) -> Outcome:
    arrivals = ((first_s, 3840), (end_s, 96000))
    return Outcome("step", 0, result(sent_at_s=sent_at_s, arrivals=arrivals, end_s=end_s))


def test_replicas_are_series_of_changes() -> None:
    readings = [
        Reading(10.0, {"Talker": 1}, {"Talker": 1}),
        Reading(11.0, {"Talker": 1}, {"Talker": 2}),
        Reading(12.0, {"Talker": 1}, {"Talker": 2}),
        Reading(15.0, {"Talker": 2}, {"Talker": 2}),
        Reading(18.0, {"Talker": 1}, {"Talker": 1}),
        Reading(20.0, {"Talker": 1}, {"Talker": 1}),
    ]
    running, target = replica_steps(readings, 10.0)
    assert running["Talker"] == Step((0.0, 5.0, 8.0, 10.0), (1, 2, 1, 1))
    assert target["Talker"].first(2) == 1.0
    assert running["Talker"].first(2) == 5.0
    assert running["Talker"].first(3) is None
    # It was so before.
    assert running["Talker"].first(2, since_s=6.0) == 6.0
    assert running["Talker"].first(2, since_s=8.0) is None
    assert running["Talker"].settled(1) == 8.0
    assert running["Talker"].settled(2) is None


def test_streams_are_counted_from_sending_to_their_end() -> None:
    streams, waiting = stream_steps([outcome(1.0, 0.5, 4.0), outcome(2.0, 1.0, 2.0)], 0.0)
    assert streams == Step((1.0, 2.0, 4.0, 5.0), (1, 2, 1, 0))
    assert waiting == Step((1.0, 1.5, 2.0, 3.0), (1, 0, 1, 0))
    assert streams.most == 2


def test_first_audio_is_told_by_when_a_request_was_sent() -> None:
    outcomes = [outcome(0.5, 0.1, 1.0), outcome(4.0, 0.3, 1.0), outcome(12.0, 0.2, 1.0)]
    assert first_audio_steps(outcomes, 0.0) == Step((0.0, 10.0), (0.3, 0.2))


def test_stages_are_apart_while_their_numbers_differ() -> None:
    targets = {
        "Talker": Step((0.0, 4.0, 10.0), (1, 2, 2)),
        "SpeechDecoder": Step((0.0, 5.5, 10.0), (1, 2, 2)),
    }
    assert apart_s(targets, ["Talker", "SpeechDecoder"], 10.0) == 1.5
    assert apart_s(targets, ["Talker", "SpeechDecoder"], 10.0, [(3.0, 5.0)]) == 0.5


def test_decisions_are_read_from_the_controllers_log() -> None:
    first, second = decisions(LOG, 0.0)
    assert (first["reason"], second["targets"]) == ("steady", {"Talker": 2})
    assert second["at_s"] - first["at_s"] == 10.25


def traced(**changes: Any) -> dict[str, Any]:
    step = {"at_s": [0.0, 30.0], "values": [1.0, 2.0]}
    fates = {"complete": 9, "refused": 1, "left": 0, "lost": 0, "broken": 0, "unequal": 0}
    return {
        "facts": {
            "placement": "split",
            "cpus": 2,
            "capacity": 4,
            "policy": {},
            "commit": "abc",
            "command": "python -m load_tests.scaling",
        },
        "stages": ["Talker"],
        "most": 2,
        "end_s": 60.0,
        "apart_s": 1.5,
        "nodes": [["code predictor", "speech decoder", "talker"]],
        "phases": [{"phase": "step", "requests": 10, "fates": fates, "first_audio_p95_s": 0.4}],
        "changes": [{"change": "update", "at_s": 45.0, "done_s": 30.0}],
        "turns": [{"name": "step", "begin_s": 10.0, "end_s": 40.0}],
        "running": {"Talker": step},
        "target": {"Talker": step},
        "streams": step,
        "waiting": step,
        "first_audio_p95_s": step,
        "decisions": decisions(LOG, 0.0),
        "asked_after_s": {"Talker": 2.0},
        "ready_after_s": {"Talker": 20.0},
        "back_after_s": {"Talker": 31.0},
        **changes,
    }


def test_the_report_says_what_each_stage_took(tmp_path: Path) -> None:
    text = report.compose(tmp_path, traced())
    assert "As it should be." in text
    assert "At the end of the step: code predictor, speech decoder, talker." in text
    assert "| Talker | 2.0 | 20.0 | 31.0 |" in text
    assert "| load | 2 |" in text.replace("  ", " ")
    assert "replaced after 30.0 s" in text
    assert (tmp_path / "report.md").read_text("utf-8") == text


def test_a_stage_that_stays_and_a_stream_that_is_lost_are_faults() -> None:
    lost = traced()["phases"][0]
    lost["fates"] = {**lost["fates"], "lost": 2}
    found = report.faults(traced(phases=[lost], back_after_s={"Talker": None}))
    assert found == [
        "Talker did not come back to one replica",
        "2 streams were lost, broken or unequal",
    ]
    assert not report.faults(traced())


def test_an_update_of_which_no_end_was_seen_is_a_fault(tmp_path: Path) -> None:
    result = traced(changes=[{"change": "update", "at_s": 45.0, "done_s": None}])
    assert report.faults(result) == ["the update was not seen to end"]
    assert "not seen to end" in report.compose(tmp_path, result)


@pytest.mark.parametrize(("capacity", "nodes", "streams"), [(16, 2, 13), (4, 3, 6), (4, 2, 3)])
def test_while_a_replica_is_replaced_the_others_carry_the_load(
    capacity: int, nodes: int, streams: int
) -> None:
    plan = Plan("split", nodes, capacity, 1, capacity * nodes, 1.0, 1.0, 1.0)
    assert plan.update_streams == streams
    left = capacity * (nodes - 1)
    # And the policy gives none back meanwhile.
    assert TUNING.down_share * left < streams < left


def grown(**change: Any) -> dict[str, Any]:
    """The result of a run with one turn."""
    turn = {
        **{"name": "a node joined", "held": 2, "ran": 2, "asked": 2, "busy": 2},
        **{"health": "healthy", "ready_s": 21.04, "took_s": 90.4},
    }
    fates = dict.fromkeys(("complete", *BAD), 0)
    return {"turns": [turn | change], "phases": [{"fates": fates | change.get("fates", {})}]}


def test_of_nodes_that_come_and_go_each_thing_that_is_not_as_it_should_be_is_told() -> None:
    assert growth.faults(grown()) == []
    assert list(growth.lines(grown()))[-1] == "| a node joined | 2 | 2 | 2 | 2 | 21.0 | 90 |"
    assert growth.faults(grown(ran=1)) == ["a node joined: 1 replicas on 2 nodes"]
    assert growth.faults(grown(busy=1)) == ["a node joined: 1 replicas had streams"]
    assert growth.faults(grown(asked=3)) == ["a node joined: 3 replicas were asked for"]
    assert growth.faults(grown(health="degraded"))[0].endswith("the server was degraded")
    assert growth.faults(grown(fates={"lost": 2})) == ["2 streams were lost, broken or unequal"]
