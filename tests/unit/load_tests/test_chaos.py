"""The arithmetic of the chaos test: what falls when, what is equal, what is a gap."""

import asyncio
import json
import math
import signal
import subprocess
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from load_tests.chaos.__main__ import full_load_p95_s, healthy
from load_tests.chaos.changes import CHANGES, changed, is_done
from load_tests.chaos.compare import References, compare
from load_tests.chaos.killer import Killer, Strike
from load_tests.chaos.outcomes import Outcome, Turn, by_phase, figures_of, longest_gap
from load_tests.chaos.record import Record, growth, result_of
from load_tests.chaos.schedule import HANG_S, Blow, blows
from load_tests.chaos.settings import parse, replica_overrides, server_config, workload_of
from load_tests.chaos.watch import Reading, Sample, Watch, gone_at, healed_at
from load_tests.reports import circumstances, files
from load_tests.reports.chaos_report import compose
from load_tests.servers.processes import ServerProcess, is_alive
from serve_app import serve_config
from tests.unit.load_tests.values import at, result

KINDS = ("talker", "code predictor", "speech decoder")


def test_blows_depend_on_the_seed_alone_and_go_round_the_kinds() -> None:
    planned = blows(KINDS, kills=7, stops=4, every_s=10.0, seed=3)
    assert planned == blows(KINDS, kills=7, stops=4, every_s=10.0, seed=3)
    assert planned != blows(KINDS, kills=7, stops=4, every_s=10.0, seed=4)
    kills = Counter(blow.kind for blow in planned if blow.number == signal.SIGKILL)
    assert sorted(kills.values()) == [2, 2, 3]
    stops = [blow for blow in planned if blow.number == signal.SIGSTOP]
    assert len(stops) == 4
    hangs = [blow.hang_s for blow in stops if blow.hang_s is not None]
    assert len(hangs) == 2
    assert all(HANG_S[0] <= hang_s <= HANG_S[1] for hang_s in hangs)
    assert all(1.0 <= blow.wait_s <= 19.0 for blow in planned)


def test_a_blow_picks_one_of_however_many_there_are() -> None:
    blow = Blow("talker", signal.SIGKILL, 0.0, pick=0.999)
    assert [blow.choose(count) for count in (1, 2, 3)] == [0, 1, 2]


def pcm(*samples: int) -> bytes:
    return np.array(samples, "<i2").tobytes()


def test_a_stream_is_equal_up_to_rounding_and_as_far_as_it_came() -> None:
    expected = pcm(100, 200, 300, -32768)
    assert compare(expected, expected, 0).is_equal
    near = compare(expected, pcm(101, 200, 299, -32768), 1)
    assert (near.is_equal, near.rounded) == (True, 2)
    assert not compare(expected, pcm(101, 200), 0).is_equal
    # The difference of two samples may be no int16.
    far = compare(expected, pcm(100, 200, 300, 32767), 1)
    assert (far.wrong, far.first_wrong, far.largest) == (1, 3, 65535)
    part = compare(expected, pcm(100, 200) + b"\1", 1)
    assert (part.is_equal, part.samples) == (True, 2)


def test_what_is_faint_beside_its_frame_is_rounding_where_that_is_allowed() -> None:
    frame = 1920
    expected = pcm(*[1000, -1000] * (frame // 2), *[10, -10] * (frame // 2))
    off = pcm(*[1005, -1005] * (frame // 2), *[10, -10] * (frame // 2))
    assert not compare(expected, off, 1).is_equal
    near = compare(expected, off, 1, below_db=40.0)
    assert (near.is_equal, near.rounded, near.largest) == (True, frame, 5)
    # The same error in the quiet frame is as loud as the frame, and -46 dB is not below -50.
    quiet = pcm(*[1000, -1000] * (frame // 2), *[15, -15] * (frame // 2))
    assert compare(expected, quiet, 1, below_db=40.0).first_wrong == frame
    assert not compare(expected, off, 1, below_db=50.0).is_equal


def test_samples_beyond_the_end_are_wrong() -> None:
    doubled = compare(pcm(1, 2), pcm(1, 2, 2), 1)
    assert (doubled.wrong, doubled.first_wrong) == (1, 2)
    assert doubled.text(1) == "1 of 3 samples differ, by up to 0, from frame 2 on"


def test_what_has_no_reference_is_not_compared() -> None:
    references = References()
    assert references.check(3, pcm(1)) is None
    references.learn(3, pcm(1))
    assert 3 in references
    found = references.check(3, pcm(9))
    assert found is not None
    assert not found.is_equal


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({}, "complete"),
        ({"status": 429, "error": "status", "arrivals": ()}, "refused"),
        ({"status": 503, "error": "status", "arrivals": ()}, "lost"),
        ({"error": "timeout", "arrivals": ()}, "lost"),
        ({"error": "truncated"}, "broken"),
        ({"error": "length"}, "broken"),
        ({"error": "left"}, "left"),
    ],
)
def test_every_request_has_one_fate(changes: dict[str, Any], fate: str) -> None:
    assert Outcome("steady", 0, result(**changes)).fate == fate
    wrong = compare(pcm(1), pcm(9), 1)
    assert Outcome("steady", 0, result(), wrong).fate == "unequal"


def test_the_longest_gap_around_a_loss_counts_the_wait_for_the_first_audio_too() -> None:
    # Sent at 100 s: first piece at 100.1, the next at 102.1, then the end at once.
    stream = Outcome("steady", 1, result(arrivals=at((0.1, 1), (2.1, 9)), end_s=2.1))
    waiting = Outcome("burst", 2, result(sent_at_s=101.0, arrivals=at((3.5, 9)), end_s=3.5))
    # It rested for 49.8 s, and what it then asked for was there.
    rested = result(arrivals=at((0.1, 1), (50.0, 9)), rests_s=(49.8, 0.0))
    slow = Outcome("slow", 3, rested, self_paced=True)
    early = longest_gap([stream, slow], 100.5, 101.0)
    assert early is not None
    assert (early.number, early.length_s) == (1, pytest.approx(2.0))
    later = longest_gap([stream, waiting, slow], 102.5, 103.0)
    assert later is not None
    assert (later.phase, later.length_s) == ("burst", pytest.approx(3.5))
    assert longest_gap([stream, slow], 103.0, 104.0) is None
    assert stream.longest_gap_s == pytest.approx(2.0)
    assert slow.longest_gap_s == pytest.approx(0.1)


def test_a_stream_that_never_went_on_has_a_gap_up_to_its_end() -> None:
    cut = Outcome("steady", 1, result(arrivals=at((0.1, 1)), end_s=20.1, error="truncated"))
    gap = longest_gap([cut], 110.0, 111.0)
    assert gap is not None
    assert gap.length_s == pytest.approx(20.0)


def test_turns_of_one_load_are_taken_together_and_refusals_apart() -> None:
    refused = {"status": 429, "error": "status", "arrivals": (), "end_s": 0.02}
    first = Turn("overload 3x", 100.0, 110.0)
    first.outcomes += [
        Outcome("overload 3x", 0, result()),
        Outcome("overload 3x", 1, result(**refused, retry_after_s=1.0)),
    ]
    second = Turn("overload 3x", 120.0, 130.0, [Outcome("overload 3x", 2, result(**refused))])
    (figures,) = by_phase([first, second])
    assert (figures.requests, figures.fates["complete"], figures.fates["refused"]) == (3, 1, 2)
    assert figures.first_audio_p95_s == 0.1
    assert figures.span_s == 20.0
    assert figures.complete_per_s == pytest.approx(1 / 20)
    assert (figures.refusals.p95_s, figures.refusals.retry_after_s) == (0.02, (1.0,))
    assert figures.refusals.without_retry_after == 1


def test_streams_are_equal_bit_for_bit_or_but_for_rounding_or_not() -> None:
    expected = pcm(10, 20, 30)
    outcomes = [
        Outcome("steady", number, result(), compare(expected, got, 1))
        for number, got in enumerate(
            [expected, expected, pcm(10, 21, 30), pcm(10, 21, 90), pcm(10, 20, 90)]
        )
    ]
    figures = figures_of("steady", [*outcomes, Outcome("steady", 5, result())], 10.0)
    assert (figures.exact, figures.rounded, figures.fates["unequal"]) == (2, 1, 2)
    assert figures.fates["complete"] == 4


def test_nothing_is_struck_before_all_replicas_are_there() -> None:
    said = [None, {"status": "degraded"}, {"status": "healthy"}]

    async def ask() -> dict[str, str] | None:
        return said.pop(0) if len(said) > 1 else said[0]

    async def never() -> None:
        return None

    assert asyncio.run(healthy(ask, 60.0))
    assert len(said) == 1
    assert not asyncio.run(healthy(never, 0.01))


def test_full_load_is_measured_without_the_burst_it_begins_with() -> None:
    turn = Turn("full load", 100.0, 110.0)
    for number, (sent_at_s, first_s) in enumerate([(100.0, 0.4), (100.0, 0.5), (101.0, 0.1)]):
        audio = result(sent_at_s=sent_at_s, arrivals=at((first_s, 1), (first_s + 0.1, 24)))
        turn.outcomes.insert(0, Outcome("full load", number, audio))
    assert full_load_p95_s(turn, 2) == 0.1
    # Where it was no more than that, it is all there is.
    assert full_load_p95_s(turn, 3) == 0.5


def readings(*entries: tuple[float, int, int, str]) -> list[Reading]:
    """(seconds, running talkers, ready replicas, state), and process 7 as long as there are two."""
    return [
        Reading(
            at_s,
            {"talker": count},
            {"talker": count, "speech decoder": ready - count},
            state,
            frozenset({7} if count > 1 else ()),
        )
        for at_s, count, ready, state in entries
    ]


def test_a_server_has_healed_when_it_stays_whole() -> None:
    # Killed at 10: nobody has missed it at 10.2; its successor is there at 12 and ready at 15.
    seen = readings(
        (9.5, 2, 5, "healthy"),
        (10.2, 1, 5, "healthy"),
        (12.0, 2, 5, "healthy"),
        (13.0, 2, 4, "degraded"),
        (15.0, 2, 5, "degraded"),
        (17.0, 2, 5, "degraded"),
    )
    assert healed_at(seen, 10.0, "talker", 2) is None
    seen += readings((18.0, 2, 5, "healthy"))
    assert healed_at(seen, 10.0, "talker", 2) == 15.0
    # Its own kind was whole before that.
    assert healed_at(seen, 10.0, "talker", 2, alone=True) == 12.0
    assert gone_at(seen, 10.0, 7) == 10.2
    assert gone_at(seen, 12.0, 7) is None


def test_of_overlapping_blows_none_falls_on_a_kind_that_has_not_healed() -> None:
    async def health() -> None:
        return None

    async def main() -> None:
        watch = Watch(list, health)
        killer = Killer(
            [Blow(kind, signal.SIGKILL, 0.0, 0.0) for kind in ("talker", *KINDS[::2])],
            lambda: [process for process in server_processes if is_alive(process)],
            watch,
            overlap="kinds",
        )
        killing = asyncio.create_task(killer.run())
        async with asyncio.timeout(60):
            while not killer.strikes:
                await asyncio.sleep(0.01)
            # Long enough for another one, were it to fall.
            await asyncio.sleep(0.5)
            assert [strike.blow.kind for strike in killer.strikes] == ["talker"]
            whole = {"talker": 2}
            for after_s in (0.1, 4.0):
                at_s = killer.strikes[0].at_s + after_s
                watch.readings.append(Reading(at_s, whole, whole, "degraded"))
            while len(killer.strikes) < 3:
                await asyncio.sleep(0.01)
        # Of the other kind it falls though the second talker is still away.
        assert [strike.blow.kind for strike in killer.strikes] == ["talker", *KINDS[::2]]
        killing.cancel()

    children = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
    try:
        kinds = ("talker", "talker", "speech decoder")
        server_processes = [
            *processes_as(zip((child.pid for child in children), kinds, strict=True))
        ]
        asyncio.run(main())
    finally:
        for child in children:
            child.kill()
            child.wait()


def processes_as(kinds: Iterable[tuple[int, str]]) -> Iterator[ServerProcess]:
    for pid, kind in kinds:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
        yield ServerProcess(pid, kind, int(fields[19]))


def test_growth_compares_the_ends_of_a_run_per_process() -> None:
    samples = [
        Sample(float(turn), "talker", pid, 100.0 + 10 * turn, 50, 9)
        for turn in range(6)
        for pid in (1, 2)
    ]
    found = {entry.name: (entry.before, entry.after) for entry in growth(samples)}
    assert found["rss_mib"] == (105.0, 145.0)
    assert found["processes"] == (2, 2)
    assert growth(samples[:2]) == []


def test_two_replicas_of_each_stage_fit_a_small_machine_and_share_a_gpu() -> None:
    small = replica_overrides("split", 2, gpus=0, cores=2)
    assert any("Talker.autoscaling_config={min_replicas: 2" in setting for setting in small)
    assert "talker.num_cpus=0.250" in small
    assert not [setting for setting in small if "num_gpus" in setting]
    assert "talker.num_gpus=0.2500" in replica_overrides("fused", 2, gpus=1, cores=16)
    own = replica_overrides("fused", 2, gpus=2, cores=64)
    assert not [setting for setting in own if "num_gpus" in setting or "num_cpus" in setting]
    several = replica_overrides("fused", 1, gpus=1, cores=16, ingresses=3)
    assert any("Ingress.autoscaling_config={min_replicas: 3" in setting for setting in several)


def test_the_command_line_makes_a_server_and_a_workload(tmp_path: Path) -> None:
    args = parse(["--placement", "fused", "--replicas", "2", "--requests", "3"])
    assert args.kinds == ["fused", "fused child"]
    assert (args.calm_s, parse(["--calm-s", "5"]).calm_s) == (args.phase_s, 5.0)
    config = server_config(args)
    (fused,) = [d for d in config["applications"][0]["deployments"] if d["name"] == "Fused"]
    assert fused["autoscaling_config"]["max_replicas"] == 2
    # The launcher checks it more strictly than Serve.
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    assert serve_config.load(str(file)) == config
    workload = workload_of(args)
    assert workload.call(1).body == workload.call(4).body != workload.call(2).body
    with pytest.raises(SystemExit):
        parse(["--placement", "fused", "--kinds", "talker"])
    with pytest.raises(SystemExit):
        parse(["--soak"])


def test_a_report_names_what_was_lost_and_after_what(tmp_path: Path) -> None:
    record = Record(began_s=90.0, full_p95_s=0.1)
    turn = Turn("steady", 100.0, 130.0, lags_s=[0.001, 0.03], load_average=2.5)
    turn.outcomes += [
        Outcome("steady", 0, result(), compare(pcm(1, 2), pcm(1, 3), 1)),
        Outcome(
            "steady",
            4,
            result(arrivals=at((0.1, 1)), error="truncated", detail="after 3840 bytes", end_s=20.0),
        ),
    ]
    record.turns.append(turn)
    record.strikes.append(
        Strike(Blow("talker", signal.SIGKILL, 1.0, 0.0), 101.5, 4711, 2, healed_s=8.5)
    )

    async def health() -> None:
        return None

    record.watch = Watch(list, health)
    record.watch.readings += readings((91.0, 2, 5, "healthy"), (102.0, 1, 4, "degraded"))
    assert record.is_bad
    facts = {**circumstances.environment("abc"), "ready_s": 12.0}
    stored = files.to_json({"facts": facts, **result_of(record)})
    text = compose(tmp_path, json.loads(json.dumps(stored)))
    assert (tmp_path / "report.md").read_text() == text
    for line in (
        "**1 of 2 requests lost, broken or unequal.** Of 1 streams that were compared with the"
        " undisturbed one 0 are equal bit for bit, 1 but for rounding, 0 are not equal.",
        "| steady | 2 | 1 | 0 | 0 | 0 | 1 | 0 | 1 | 100 / 100 | 19.90 | 0.03 | 30 | 2.5 |",
        "| 11.5 | talker | SIGKILL | 4711, one of 2 | 8.5 | 0.5 | 1 (1) | 19.90 |",
        "- broken: steady, request 4, 10.0 to 30.0 s, status 200, 1920 of 48000 samples: truncated"
        " after 3840 bytes; SIGKILL to talker 18.5 s before its end",
        "1 s healthy, 12 s degraded",
    ):
        assert line in text.splitlines()


def test_a_report_puts_each_overload_beside_full_load_and_says_which_aims_are_missed(
    tmp_path: Path,
) -> None:
    def served(phase: str, first_s: float) -> Outcome:
        return Outcome(phase, 0, result(arrivals=at((first_s, 25), (first_s + 0.01, 25))))

    def refused(phase: str, end_s: float) -> Outcome:
        answer = {"error": "status", "status": 429, "end_s": end_s, "retry_after_s": 1.0}
        return Outcome(phase, 0, result(arrivals=(), **answer))

    record = Record(began_s=0.0, full_p95_s=0.04)
    record.turns.append(Turn("full load", 0.0, 2.0, [served("full load", 0.04)] * 4))
    for name, first_s, count, refusal_s in (("3x", 0.05, 4, 0.01), ("10x", 0.07, 3, 0.06)):
        phase = f"overload {name}"
        turn = Turn(phase, 2.0, 4.0, lags_s=[0.002])
        turn.outcomes += [served(phase, first_s)] * count + [refused(phase, refusal_s)]
        record.turns.append(turn)
    record.recoveries_s += [(3.0, 0.0), (10.0, None)]
    stored = files.to_json({"facts": circumstances.environment("abc"), **result_of(record)})
    lines = compose(tmp_path, json.loads(json.dumps(stored))).splitlines()
    assert "| 3x | 50, 1.25 times | 2.00, 100 % | 0 | 0 | 10 | 0.0 s | 2 |" in lines
    assert "| 10x | 70, **1.75** times | 1.50, **75** % | 0 | 0 | **60** | **-** | 2 |" in lines


def test_a_run_in_which_nothing_was_made_is_no_success() -> None:
    assert Record(began_s=0.0).is_bad
    good = Record(began_s=0.0, turns=[Turn("steady", 0.0, math.nan, [Outcome("s", 0, result())])])
    assert not good.is_bad


def test_a_planned_change_is_made_of_the_config_and_seen_in_the_processes() -> None:
    config = server_config(parse(["--replicas", "2"]))
    replicas = {
        change: {
            deployment["name"]: deployment["autoscaling_config"]["max_replicas"]
            for deployment in changed(config, change, 2, 0)["applications"][0]["deployments"]
        }
        for change in CHANGES
    }
    stages = {"SpeechDecoder", "Talker", "CodePredictor"}
    assert replicas["remove"] == {"Ingress": 1, **dict.fromkeys(stages, 1)}
    assert replicas["add"] == replicas["update"] == {"Ingress": 1, **dict.fromkeys(stages, 2)}
    assert changed(config, "update", 2, 0) != changed(config, "update", 2, 1) != config
    for change in CHANGES:
        assert not list(serve_config.find_problems(changed(config, change, 2, 0)))

    def server(*pids: int) -> list[ServerProcess]:
        kinds = ("ingress", "talker", "talker")
        return [ServerProcess(pid, kind, 0) for pid, kind in zip(pids, kinds, strict=False)]

    before = server(1, 2, 3)
    assert is_done("remove", before, server(1, 2), 2)
    assert not is_done("remove", before, before, 2)
    assert is_done("add", server(1, 2), before, 2)
    assert not is_done("update", before, server(4, 5, 3), 2)
    assert is_done("update", before, server(4, 5, 6), 2)


def test_a_run_in_which_a_kernel_was_compiled_after_ready_is_no_success(tmp_path: Path) -> None:
    exposition = """# TYPE tts_kernels_compiled_late_total counter
tts_kernels_compiled_late_total{stage="talker",replica="a"} 2.0
tts_kernels_compiled_late_total{stage="speech_decoder"} 1.0
tts_stage_steps_total{stage="talker"} 90.0
"""

    async def health() -> None:
        return None

    async def metrics() -> str:
        return exposition

    async def look() -> Watch:
        watch = Watch(list, health, metrics)
        watching = asyncio.create_task(watch.run())
        while not watch.late_kernels:
            await asyncio.sleep(0.01)
        watching.cancel()
        return watch

    record = Record(began_s=0.0, turns=[Turn("steady", 0.0, 1.0, [Outcome("s", 0, result())])])
    assert not record.is_bad
    record.watch = asyncio.run(look())
    assert record.is_bad
    facts = {**circumstances.environment("abc"), "ready_s": 12.0}
    text = compose(tmp_path, files.to_json({"facts": facts, **result_of(record)}))
    assert "**3 kernels were compiled after ready.**" in text.splitlines()
