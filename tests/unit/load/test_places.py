"""Which replica gets the next stream, by what one caller knows of all of them."""

import pytest

from serve_app.load.places import Places

STREAMS = 4


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def places(clock: Clock) -> Places[str]:
    places = Places[str](clock, pick=min)
    places.set_live(["a", "b"])
    return places


def test_all_places_are_filled_and_none_is_overfilled(places: Places[str]) -> None:
    taken = [places.take(STREAMS) for _ in range(2 * STREAMS)]
    assert sorted(filter(None, taken)) == ["a"] * STREAMS + ["b"] * STREAMS
    assert places.take(STREAMS) is None
    places.give_back("b")
    assert places.take(STREAMS) == "b"


def test_what_others_have_there_counts(places: Places[str]) -> None:
    assert places.take(STREAMS) == "a"
    places.heard("a", 4)
    assert (places.load("a"), places.others) == (4, 3)
    assert [places.take(STREAMS) for _ in range(5)] == ["b"] * 4 + [None]
    # Own calls that end are known at once, those of others when the replica tells.
    places.give_back("a")
    assert places.take(STREAMS) == "a"
    places.heard("a", 1)
    assert (places.load("a"), places.others) == (1, 0)


def test_who_has_just_rejected_a_call_is_the_last_choice_for_a_moment(
    places: Places[str], clock: Clock
) -> None:
    places.close("a")
    assert [places.take(STREAMS) for _ in range(3)] == ["b", "b", "b"]
    clock.now_s += 1.0
    assert places.take(STREAMS) == "a"


def test_who_does_not_answer_is_the_last_choice_until_it_does(places: Places[str]) -> None:
    assert (places.not_heard("a"), places.not_heard("a")) == (1, 2)
    assert places.answering == 1
    assert [places.take(STREAMS) for _ in range(5)] == ["b"] * STREAMS + ["a"]
    places.heard("a", 1)
    assert places.answering == 2
    assert places.take(STREAMS) == "a"


def test_a_replica_that_is_gone_takes_its_streams_with_it(places: Places[str]) -> None:
    for _ in range(4):
        places.take(STREAMS)
    places.heard("a", 4)
    places.set_live(["b", "c"])
    assert (len(places), places.others, places.load("a")) == (2, 0, 0)
    places.give_back("a")
    places.heard("a", 3)
    assert places.not_heard("a") == 0
    assert places.take(STREAMS) == "c"
    assert places.load("b") == 2


def test_who_has_streams_is_asked_often_and_who_has_none_now_and_then(
    places: Places[str], clock: Clock
) -> None:
    assert places.to_ask(0.5) == ["a", "b"]  # nobody has said anything yet
    places.heard("a", 0)
    places.heard("b", 0)
    places.take(STREAMS)
    assert places.to_ask(0.5) == []
    clock.now_s += 0.5
    assert places.to_ask(0.5) == ["a"]
    places.heard("a", 1)
    assert places.to_ask(0.5) == []
    clock.now_s += 4.5
    # Another caller may have sent it some.
    assert places.to_ask(0.5) == ["a", "b"]


def test_room_is_for_those_that_are_not_excluded(places: Places[str]) -> None:
    for _ in range(7):
        places.take(STREAMS)
    assert places.has_room(STREAMS)
    assert places.take(STREAMS, {"b"}) is None


def test_a_replica_whose_streams_are_late_gets_fewer(places: Places[str]) -> None:
    places.set_live(["a", "b"])
    assert sorted(filter(None, (places.take(8) for _ in range(4)))) == ["a", "a", "b", "b"]
    places.set_late("a", 2)
    # Its two count as eight.
    assert [places.take(16) for _ in range(6)] == ["b"] * 6
    assert {places.take(16), places.take(16)} == {"a", "b"}
    # It is slower, and not full.
    assert places.has_room(4)
    places.set_late("a", 0)
    assert [places.take(16) for _ in range(5)] == ["a"] * 5


def test_one_with_a_free_place_comes_before_all_that_have_none(places: Places[str]) -> None:
    for key in ("a", "b"):
        places.heard(key, 2)
    places.set_late("a", 2)
    # Late streams send the others elsewhere, yet not to where they would have to wait.
    taken = [places.take(2 * STREAMS, places=STREAMS) for _ in range(5)]
    assert taken[:4] == ["b", "b", "a", "a"]
    assert taken[4] == "b"


def test_a_caller_goes_by_its_own_calls_where_others_have_nearly_as_many(
    places: Places[str],
) -> None:
    """Else all callers send theirs to the same replica until the next word of it."""
    places.heard("a", 106)
    places.heard("b", 100)
    assert [places.take(512, places=256) for _ in range(4)] == ["a", "b"] * 2
    places.heard("a", 140)
    assert [places.take(512, places=256) for _ in range(4)] == ["b"] * 4


def test_who_refused_a_stream_is_asked_behind_the_others_for_a_moment(
    places: Places[str], clock: Clock
) -> None:
    """Nothing may have been heard of the other since it was full."""
    places.heard("a", STREAMS + 1)
    places.heard("b", STREAMS + 2)
    places.refused("a")
    assert places.take(2 * STREAMS, places=STREAMS) == "b"
    clock.now_s += 0.02
    assert places.take(2 * STREAMS, places=STREAMS) == "a"
    places.refused("gone")


def test_those_that_seem_full_are_asked_sooner_a_few_at_a_time(clock: Clock) -> None:
    places = Places[str](clock, pick=min)
    keys = list("abcdefg")
    places.set_live(keys)
    for key in keys:
        places.heard(key, STREAMS - (key == "a"))
        clock.now_s += 0.01
    # Since they were heard of: 0.105 s, 0.095 s and so on.
    clock.now_s += 0.035 + 0.01
    assert places.to_ask(0.5, STREAMS) == ["b"]
    clock.now_s += 0.05
    assert places.to_ask(0.5, STREAMS) == ["b", "c", "d", "e"]
    assert places.to_ask(0.5) == []
    clock.now_s += 0.4
    assert sorted(places.to_ask(0.5, STREAMS)) == keys
