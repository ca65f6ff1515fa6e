"""Where a start's time goes."""

import threading

import pytest

from serve_app.models.start_times import StartTimes
from tests.unit.speech_decoder.counting import FakeClock


def test_laps_leave_nothing_out_and_a_part_may_come_again() -> None:
    clock = FakeClock()
    times = StartTimes(clock)
    clock.now += 100  # of whatever the process did before
    times.begin()
    for seconds, part in (
        (1.0, "imports"),
        (0.5, "algorithms"),
        (0.25, "graphs"),
        (2, "algorithms"),
    ):
        clock.now += seconds
        times.lap(part)
    assert times.parts == {"imports": 1.0, "algorithms": 2.5, "graphs": 0.25}
    assert list(times.parts) == ["imports", "algorithms", "graphs"]


def test_a_lap_on_another_thread_goes_on_where_the_last_one_ended() -> None:
    clock = FakeClock()
    times = StartTimes(clock)
    clock.now += 1
    times.lap("here")
    clock.now += 2
    thread = threading.Thread(target=times.lap, args=("there",))
    thread.start()
    thread.join(10)
    assert times.parts == {"here": pytest.approx(1), "there": pytest.approx(2)}
