"""The thread that decodes: slots, order of service, failures."""

import asyncio
import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest

from serve_app.errors import StageFailed, StageUnavailable
from serve_app.models.speech_decoder.jobs import DecodeJob
from serve_app.models.speech_decoder.queue import PRIMED_FRAMES
from serve_app.protocols import require
from serve_app.types import Health
from tests.unit.speech_decoder.conftest import MakeRunner
from tests.unit.speech_decoder.counting import (
    SAMPLES_PER_FRAME,
    CountingModel,
    FakeClock,
    codes_of,
)
from tests.unit.speech_decoder.waiting import WaitingRunner


def test_a_job_longer_than_the_longest_chunk_is_cut(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()
    slot = runner.acquire()
    samples = runner.submit(slot, codes_of(3, 11)).result(10)
    assert samples[::SAMPLES_PER_FRAME].tolist() == [3000 + i for i in range(11)]
    assert [step[-1] for step in counting.steps] == [4, 4, 3]
    assert runner.stats()["frames"] == 11
    assert 0 < runner.stats()["step_s"] < 10


@pytest.mark.parametrize(
    ("frames", "steps"),
    [
        pytest.param(1, [(1, 2, 3, 1)], id="all"),
        # Without a GPU no step is longer than the longest piece, or who has just begun would wait
        # for all who are far ahead, at once.
        pytest.param(2, [(1, 2, 2), (3, 2)], id="as many as the longest piece has frames"),
    ],
)
def test_streams_with_equal_frames_share_a_step(
    make_runner: MakeRunner,
    counting: CountingModel,
    frames: int,
    steps: list[tuple[int, ...]],
) -> None:
    runner = make_runner()
    slots = [runner.acquire() for _ in range(4)]
    blocker = counting.hold(runner, slots[3], codes_of(9, 3))
    futures = [runner.submit(slot, codes_of(i + 1, frames)) for i, slot in enumerate(slots[:3])]
    counting.gate.set()
    assert [future.result(10)[0] for future in futures] == [1000, 2000, 3000]
    blocker.result(10)
    assert counting.steps == [(9, 3), *steps]


def test_first_audio_goes_first_then_who_runs_dry_soonest(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    clock = FakeClock()
    runner = make_runner(max_streams=5, batch_sizes=(1,), clock=clock)
    rich, poor, new, blocker = (runner.acquire() for _ in range(4))
    runner.submit(rich, codes_of(1, 4)).result(10)
    runner.submit(poor, codes_of(2, 1)).result(10)
    runner.submit(blocker, codes_of(4)).result(10)
    counting.steps.clear()
    held = counting.hold(runner, blocker, codes_of(4))
    clock.now += 1
    futures = [
        runner.submit(slot, codes_of(code)) for slot, code in ((rich, 1), (poor, 2), (new, 3))
    ]
    counting.gate.set()
    for future in (held, *futures):
        future.result(10)
    assert [step[0] for step in counting.steps] == [4, 3, 2, 1]


def test_first_audio_overtakes_the_priming_of_a_resumed_stream(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()
    blocker, resumed, new = (runner.acquire() for _ in range(3))
    held = counting.hold(runner, blocker, codes_of(9))
    primed = runner.submit(resumed, codes_of(1, 12), discard=True)
    first = runner.submit(new, codes_of(2))
    counting.gate.set()
    for future in (held, primed, first):
        future.result(10)
    assert [step[0] for step in counting.steps] == [9, 2, 1, 1, 1]


def test_a_chunk_waits_for_company_only_while_its_listener_can_play(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    clock = FakeClock()
    runner = make_runner(patience_s=5.0, clock=clock)
    rich, poor = runner.acquire(), runner.acquire()
    # First audio never waits.
    runner.submit(rich, codes_of(1, 4)).result(10)
    runner.submit(poor, codes_of(2, 1)).result(10)
    counting.steps.clear()
    clock.now -= 1.0  # both have a second more to play
    waiting = runner.submit(rich, codes_of(1, 2))
    also = runner.submit(poor, codes_of(2, 2))
    with pytest.raises(TimeoutError):
        waiting.result(0.2)
    assert counting.steps == []
    clock.now += 1.2  # one of them runs dry soon
    third = runner.submit(poor, codes_of(2, 2))
    for future in (waiting, also, third):
        future.result(10)
    assert sorted(counting.steps[0][:-1]) == [1, 2]


def test_a_job_of_its_own_waits_no_longer_than_the_patience(make_runner: MakeRunner) -> None:
    runner = make_runner(patience_s=0.05)
    slot = runner.acquire()
    runner.submit(slot, codes_of(1, 4)).result(10)
    assert len(runner.submit(slot, codes_of(1, 2)).result(10)) == 2 * SAMPLES_PER_FRAME


def test_a_slot_starts_over_for_its_next_stream(make_runner: MakeRunner) -> None:
    runner = make_runner(max_streams=1)
    for _ in range(3):
        slot = runner.acquire()
        assert runner.submit(slot, codes_of(0, 2)).result(10)[SAMPLES_PER_FRAME] == 1
        runner.release(slot)


def test_a_released_stream_leaves_nothing_to_its_successor(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner(max_streams=1)
    slot = runner.acquire()
    first = counting.hold(runner, slot, codes_of(1, 9))
    abandoned = [first, runner.submit(slot, codes_of(1, 9))]
    runner.release(slot)
    for future in abandoned:
        with pytest.raises(CancelledError):
            future.result(10)
    slot = runner.acquire()
    fresh = runner.submit(slot, codes_of(2, 3))
    counting.gate.set()
    assert fresh.result(10)[::SAMPLES_PER_FRAME].tolist() == [2000, 2001, 2002]


def test_a_stream_is_primed_alone_in_parts_and_takes_its_turn_with_first_audio(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()
    blocker, new, resumed, later = (runner.acquire() for _ in range(4))
    held = counting.hold(runner, blocker, codes_of(9))
    first = runner.submit(new, codes_of(2))
    frames = 2 * PRIMED_FRAMES + 5
    primed = runner.submit(resumed, codes_of(1, frames + 3), discard=True, primed=frames)
    behind = runner.submit(later, codes_of(3, 2))
    counting.gate.set()
    for future in (held, first, behind):
        future.result(10)
    assert primed.result(10).size == 0
    assert counting.primed == [(1, PRIMED_FRAMES), (1, PRIMED_FRAMES), (1, 5)]
    # Who came before it, what is decoded of it, who came after it.
    assert [step[0] for step in counting.steps] == [9, 2, 1, 3]
    assert runner.submit(resumed, codes_of(0)).result(10)[0] == frames + 3


def test_discarded_frames_advance_the_state_without_audio(make_runner: MakeRunner) -> None:
    runner = make_runner()
    slot = runner.acquire()
    assert runner.submit(slot, codes_of(0, 6), discard=True).result(10).size == 0
    assert runner.submit(slot, codes_of(0)).result(10)[0] == 6


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((0, 16)),
        np.zeros((2, 15)),
        np.zeros(16),
        np.full((1, 16), 2048),
        np.full((1, 16), -1),
    ],
    ids=["empty", "groups", "flat", "control id", "negative"],
)
def test_codes_that_cannot_be_decoded_are_refused(
    make_runner: MakeRunner, codes: np.ndarray
) -> None:
    runner = make_runner()
    slot = runner.acquire()
    with pytest.raises(StageFailed, match="codes"):
        runner.submit(slot, codes)
    require(runner.health())


def test_a_failing_device_fails_every_stream_and_ends_the_process(
    make_runner: MakeRunner, counting: CountingModel, deaths: list[str]
) -> None:
    runner = make_runner()
    counting.gate.clear()
    futures = [runner.submit(runner.acquire(), codes_of(1, n)) for n in (1, 2)]
    counting.error = RuntimeError("device lost")
    counting.gate.set()
    for future in futures:
        with pytest.raises(StageFailed, match="device lost"):
            future.result(10)
    with pytest.raises(StageFailed, match="device lost"):
        require(runner.health())
    with pytest.raises(StageFailed):
        runner.acquire()
    runner.close()
    assert len(deaths) == 1
    assert "device lost" in deaths[0]


def test_a_step_that_never_ends_is_unhealthy_and_ends_the_process(
    make_runner: MakeRunner, counting: CountingModel, deaths: list[str]
) -> None:
    clock = FakeClock()
    runner = make_runner(clock=clock)
    slot = runner.acquire()
    # Nothing to do is no hang.
    clock.now += 3600
    require(runner.health())
    held = counting.hold(runner, slot, codes_of(1))
    clock.now += 29
    require(runner.health())
    assert not deaths
    clock.now += 2
    assert (runner.health().busy_s, runner.health().progress_s) == (31, None)
    with pytest.raises(StageFailed, match="has not finished a step"):
        require(runner.health())
    assert "has not finished a step" in deaths[0]
    counting.gate.set()
    held.result(10)
    clock.now += 5
    assert runner.health() == Health(busy_s=0, progress_s=5)


def test_a_closed_decoder_is_unavailable(make_runner: MakeRunner, counting: CountingModel) -> None:
    runner = make_runner()
    slot = runner.acquire()
    first = counting.hold(runner, slot, codes_of(1))
    second = runner.submit(slot, codes_of(1, 4))
    closer = threading.Thread(target=runner.close)
    closer.start()
    counting.gate.set()
    closer.join(10)
    assert not closer.is_alive()
    assert first.done()
    with pytest.raises(StageUnavailable):
        second.result(10)
    with pytest.raises(StageUnavailable):
        require(runner.health())
    runner.close()


def submitted(runner: WaitingRunner, slot: int, code: int) -> "asyncio.Future[np.ndarray]":
    """One frame, with a future of the loop that runs."""
    future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
    runner.enqueue(slot, DecodeJob(codes_of(code), future))
    return future


def test_results_reach_an_event_loop_and_its_cancelled_streams_get_none(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()

    async def run() -> list[int]:
        slots = [runner.acquire() for _ in range(3)]
        counting.gate.clear()
        first, gone, last = [
            submitted(runner, slot, number + 1) for number, slot in enumerate(slots)
        ]
        gone.cancel()
        runner.release(slots[1])
        counting.gate.set()
        return [int((await future)[0]) for future in (first, last)]

    assert asyncio.run(run()) == [1000, 3000]
    require(runner.health())


def test_a_failing_device_fails_the_streams_of_an_event_loop(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()

    async def run() -> None:
        counting.error = RuntimeError("device lost")
        futures = [submitted(runner, runner.acquire(), 1) for _ in range(2)]
        for future in futures:
            with pytest.raises(StageFailed, match="device lost"):
                await future

    asyncio.run(run())
