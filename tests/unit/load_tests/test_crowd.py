import os
import random
import subprocess
import sys
from dataclasses import replace

from load_tests.crowd.clients import FORMATS, fate_of, manner
from load_tests.crowd.memory import Cpu, growth_mib, tree
from load_tests.crowd.verdict import Measured, markdown, problems
from load_tests.loops.metrics import summarize
from load_tests.loops.runner import ClosedLoop, Run
from tests.unit.load_tests.values import at, result

FACTS = {"command": "x", "commit": "y", "time_utc": "z", "cpus": 2, "load_average": 0.0}


def summary(first_s: float = 0.1, failed: bool = False):
    run = Run(ClosedLoop(1, 1))
    run.results = [
        result(
            arrivals=tuple(at((first_s, 1), (0.5, 25))), **({"error": "status"} if failed else {})
        )
    ]
    return summarize(run)


def measured(**changes) -> Measured:
    alone = summary()
    fates = {("slow", "mp3", "complete"): 3, ("vanishing", "pcm", "left"): 2}
    return replace(Measured(alone, alone, alone, fates, "", [100.0] * 9, 0.0, 0.2, 0.5), **changes)


def test_nothing_wrong_is_said_so() -> None:
    assert problems(measured(), 0.1, 0.05) == []
    assert "nothing wrong" in markdown(measured(), FACTS, [])


def test_everything_wrong_is_found() -> None:
    wrong = measured(
        beside=summary(0.3),
        after=summary(failed=True),
        fates={("slow", "aac", "failed"): 1},
        first_failure="slow, aac: broken",
        growth_mib=20.0,
    )
    found = "\n".join(problems(wrong, 0.1, 0.05))
    for words in ("failed after", "200 ms later", "slow, aac: broken", "20 MiB in a third"):
        assert words in found
    assert "| slow, failed | 0 | 0 | 0 | 0 | 1 | 0 |" in markdown(wrong, FACTS, [])


def test_only_what_the_client_did_not_choose_is_a_failure() -> None:
    good = result()
    assert fate_of(good) == "complete"
    assert fate_of(replace(good, error="length")) == "complete"
    assert fate_of(replace(good, error="left")) == "left"
    assert fate_of(replace(good, error="status", status=429)) == "refused"
    assert fate_of(replace(good, error="truncated")) == "failed"
    assert fate_of(replace(good, error="length", arrivals=())) == "failed"


def test_slow_ones_listen_crawl_and_stop() -> None:
    draw = random.Random(0)
    assert manner("slow", 0, "pcm", draw).speed == 1.0
    assert manner("slow", 1, "mp3", draw).speed == 1 / 16
    assert manner("slow", 2, "opus", draw).stall_s > 0
    leaves = [manner("vanishing", n, FORMATS[0], draw).leave_after_s for n in range(9)]
    assert len(set(leaves)) == 9


def test_growth_counts_once_what_fills_once_is_full() -> None:
    assert growth_mib([100, 300, 500, 500, 510, 510, 510, 510, 510]) == 0
    assert growth_mib([100, 110, 120, 130, 140, 150, 160, 170, 180]) == 30
    assert growth_mib([1, 2, 3]) is None


def test_a_process_is_found_with_its_children() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert {os.getpid(), child.pid} <= set(tree(os.getpid()))
    finally:
        child.communicate(b"\n")


def test_cores_and_idle_time_are_shares_of_a_span() -> None:
    before, after = Cpu(100.0, 5.0, 50.0), Cpu(110.0, 8.0, 50.0 + 10 * (os.cpu_count() or 1))
    cores, idle = after.since(before)
    assert (cores, idle) == (0.3, 1.0)
    assert Cpu.now([os.getpid()]).taken_s > 0


def test_a_machine_without_idle_time_is_named() -> None:
    assert "those of the machine" in markdown(measured(idle=0.02), FACTS, [])
    assert "those of the machine" not in markdown(measured(idle=0.3), FACTS, [])
