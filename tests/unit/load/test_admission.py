"""Who may wait for a place, and who is told to come again."""

import pytest

from serve_app.errors import Full, Overloaded
from serve_app.load.admission import Admission

CAPACITY = 8


def admission(service_s: float | None = None, max_wait_s: float = 0.25) -> Admission:
    found = Admission(max_queued=20, max_wait_s=max_wait_s)
    if service_s is not None:
        found.note(service_s)
    return found


def admitted(found: Admission, goes_on: bool = False) -> int:
    """How many come in, one after the other, while nobody leaves."""
    for inside in range(100):
        try:
            found.check(inside, CAPACITY, goes_on=goes_on)
        except Overloaded:
            return inside
    raise AssertionError("no bound")


def test_whoever_finds_a_place_comes_in_whatever_streams_take() -> None:
    assert admitted(admission(service_s=1000.0, max_wait_s=0.0)) == CAPACITY


@pytest.mark.parametrize(("service_s", "waiting"), [(0.4, 5), (2.0, 1), (4.0, 0)])
def test_as_many_wait_as_get_a_place_in_time(service_s: float, waiting: int) -> None:
    """A place is free every service / 8 seconds, and 0.25 s may be waited."""
    assert admitted(admission(service_s)) == CAPACITY + waiting


def test_a_stream_takes_two_seconds_while_nothing_is_known() -> None:
    assert admitted(admission()) == CAPACITY + 1


def test_whoever_comes_while_nobody_is_there_waits_until_somebody_is() -> None:
    found = admission(service_s=4.0)
    for inside in range(20):
        found.check(inside, 0)
    with pytest.raises(Overloaded):
        found.check(20, 0)


def test_the_number_of_those_that_wait_is_bounded() -> None:
    assert admitted(admission(service_s=1e-6)) == CAPACITY + 20


def test_a_stream_that_was_heard_already_waits_instead() -> None:
    assert admitted(admission(service_s=4.0), goes_on=True) == CAPACITY + 20


def test_the_mean_follows_what_streams_take_now() -> None:
    found = admission(service_s=0.4)
    for _ in range(100):
        found.note(4.0)
    assert admitted(found) == CAPACITY
    found.forget()
    assert admitted(found) == CAPACITY + 1


def test_while_many_are_refused_those_that_come_in_wait_for_less() -> None:
    """A place every 0.025 s: ten get one within 0.25 s, one within an eighth of that."""
    found = admission(service_s=0.2)
    assert admitted(found) == CAPACITY + 10
    for _ in range(10):
        with pytest.raises(Full):
            found.check(CAPACITY + 10, CAPACITY)
    assert admitted(found) == CAPACITY + 1
    # What was heard already is not hurried, and once nearly all come in they may wait again.
    found.check(CAPACITY + 10, CAPACITY, goes_on=True)
    for _ in range(100):
        found.check(0, CAPACITY)
    assert admitted(found) == CAPACITY + 10


def test_a_crowd_is_none_where_only_the_counts_are_old() -> None:
    """48 places of 2.4 s, one free every 0.05 s; an eighth of the longest wait is less than that,
    but one of 48 streams may have ended since others were heard of.
    """
    found = Admission(max_queued=100, max_wait_s=0.2)
    found.note(2.4)
    for _ in range(10):
        with pytest.raises(Full):
            found.check(48 + 9, 48)
    assert found.is_crowded
    assert found.longest_wait_s == pytest.approx(0.05)
    found.check(48, 48)
    with pytest.raises(Full):
        found.check(48 + 1, 48)


def test_who_may_wait_for_less_is_refused_sooner_and_for_more_no_later() -> None:
    found = admission(service_s=0.4)
    # A place every 0.05 s: one in 0.06 s, none in less than that.
    for longest_s, waiting in ((0.06, 1), (0.0, 0)):
        found.check(CAPACITY + waiting - 1, CAPACITY, longest_wait_s=longest_s)
        with pytest.raises(Full):
            found.check(CAPACITY + waiting, CAPACITY, longest_wait_s=longest_s)
    found.check(CAPACITY + 4, CAPACITY, longest_wait_s=9.0)
    with pytest.raises(Full):
        found.check(CAPACITY + 5, CAPACITY, longest_wait_s=9.0)
    found.check(CAPACITY + 5, CAPACITY, goes_on=True, longest_wait_s=0.0)


def test_who_is_refused_hears_when_to_come_again() -> None:
    found = admission(service_s=80.0)
    with pytest.raises(Full) as refused:
        found.check(CAPACITY, CAPACITY)
    assert refused.value.retry_after_s == pytest.approx(9.75)
    with pytest.raises(Overloaded) as refused:
        admission(service_s=4.0).check(CAPACITY, CAPACITY)
    assert refused.value.retry_after_s == 1.0


def test_work_in_the_background_leaves_a_quarter_of_the_places_to_listeners() -> None:
    found = admission(service_s=1.0)
    for inside in range(CAPACITY * 3 // 4):
        found.check(inside, CAPACITY, background=True)
    with pytest.raises(Overloaded):
        found.check(CAPACITY * 3 // 4, CAPACITY, background=True)
    found.check(CAPACITY - 1, CAPACITY)


def test_work_in_the_background_finds_a_place_where_there_is_only_one() -> None:
    found = Admission(max_queued=0, max_wait_s=0.0)
    found.check(0, 1, background=True)
    with pytest.raises(Overloaded):
        found.check(1, 1, goes_on=True, background=True)


def test_who_gives_way_leaves_the_last_places_and_does_not_wait() -> None:
    found = admission(service_s=0.4)
    found.check(6, CAPACITY, gives_way=True)
    for inside in (7, 8):
        with pytest.raises(Overloaded, match="higher priority") as refused:
            found.check(inside, CAPACITY, gives_way=True)
        assert not isinstance(refused.value, Full)
        found.check(inside, CAPACITY)
    # What was heard already is not sent away, and where nobody is there all wait.
    found.check(8, CAPACITY, goes_on=True, gives_way=True)
    found.check(3, 0, gives_way=True)


def test_of_few_places_none_is_kept_for_a_higher_priority() -> None:
    found = admission(service_s=0.1)
    found.check(3, 4, gives_way=True)
    with pytest.raises(Overloaded):
        found.check(4, 4, gives_way=True)
