"""How many listeners Locust keeps at a time."""

import pytest

from load_tests.loops.shapes import users_at


def test_a_burst_comes_at_once_and_leaves_silence() -> None:
    counts = [users_at("burst", at_s, users=16, total_s=60) for at_s in (0, 9.9, 10, 29.9, 30, 60)]
    assert counts == [16, 16, 0, 0, 16, None]


def test_a_step_load_climbs_to_all_and_a_soak_stays_below() -> None:
    counts = [users_at("step", at_s, users=10, total_s=50) for at_s in (0, 10, 25, 49.9, 50)]
    assert counts == [2, 4, 6, 10, None]
    assert {users_at("soak", at_s, users=10, total_s=50) for at_s in (0, 49.9)} == {8}


def test_an_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="no shape 'wave'"):
        users_at("wave", 0, 1, 1)


def test_a_ramp_ends_and_a_spike_peaks_with_everybody() -> None:
    assert [users_at("ramp", at_s, 10, 100.0) for at_s in (0.0, 50.0, 99.0)] == [1, 5, 10]
    assert [users_at("spike", at_s, 20, 90.0) for at_s in (0.0, 30.0, 59.0, 60.0)] == [2, 20, 20, 2]
    assert {users_at("steady", at_s, 7, 90.0) for at_s in (0.0, 45.0, 89.0)} == {7}
