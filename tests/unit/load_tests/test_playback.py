"""What a player of the stream would hear."""

import pytest

from load_tests.loops.client import AudioShape
from load_tests.loops.metrics import play
from tests.unit.load_tests.values import FRAME_BYTES, FRAME_S, SHAPE, at


def test_audio_that_is_always_there_in_time_plays_without_a_stall() -> None:
    # The second frame comes when the first has just ended.
    playback = play(at((0.5, 1), (0.58, 2), (0.6, 10)), SHAPE)
    assert (playback.underrun_s, playback.longest_stall_s, playback.num_stalls) == (0, 0, 0)


def test_the_player_starts_at_the_first_whole_frame() -> None:
    arrivals = [(0.1, FRAME_BYTES - 2), (1.0, FRAME_BYTES), (1.08, 2 * FRAME_BYTES)]
    assert play(arrivals, SHAPE).underrun_s == 0


def test_stalls_add_up() -> None:
    # Dry at 0.08, waits until 0.18; then two frames, dry at 0.34, waits until 0.37.
    playback = play(at((0.0, 1), (0.18, 3), (0.37, 9)), SHAPE)
    assert playback.underrun_s == pytest.approx(0.13)
    assert playback.longest_stall_s == pytest.approx(0.10)
    assert playback.num_stalls == 2


def test_the_underrun_is_the_worst_deficit_of_a_player_that_never_waits() -> None:
    arrivals = at((0.2, 1), (0.31, 2), (0.5, 4), (0.51, 5), (0.9, 9), (1.5, 20))
    before = 0
    deficits = []
    for at_s, total in arrivals:
        deficits.append(at_s - 0.2 - before / FRAME_BYTES * FRAME_S)
        before = total
    assert play(arrivals, SHAPE).underrun_s == pytest.approx(max(deficits))


def test_the_header_of_a_file_is_not_audio() -> None:
    shape = AudioShape(header_bytes=44)
    arrivals = [(0.0, FRAME_BYTES), (0.05, 44 + FRAME_BYTES), (0.15, 44 + 2 * FRAME_BYTES)]
    assert play(arrivals, shape).underrun_s == pytest.approx(0.02)
