"""How many sets of stages nodes hold."""

import pytest

from serve_app.scaling.room import Place, sets_held

EVERYWHERE = frozenset({"a", "b"})
SPLIT = [
    Place({"CPU": 1.0, "GPU": 0.3}, EVERYWHERE),
    Place({"CPU": 2.0, "GPU": 0.5}, EVERYWHERE),
    Place({"CPU": 1.0, "GPU": 0.2}, EVERYWHERE),
]


@pytest.mark.parametrize(
    ("free", "held"),
    [
        ({}, 0),
        ({"a": {"CPU": 64.0}}, 0),
        ({"a": {"CPU": 64.0, "GPU": 1.0}}, 1),
        ({"a": {"CPU": 64.0, "GPU": 1.0}, "b": {"CPU": 64.0, "GPU": 3.0}}, 4),
        # Cores run out before GPUs do.
        ({"a": {"CPU": 9.0, "GPU": 8.0}}, 2),
        ({"a": {"CPU": 4.0, "GPU": 0.7}, "b": {"CPU": 4.0, "GPU": 0.3}}, 1),
    ],
)
def test_a_set_is_one_of_each_stage_wherever_it_is(
    free: dict[str, dict[str, float]], held: int
) -> None:
    assert sets_held(free, SPLIT, 8) == held


def test_no_more_are_counted_than_are_wanted() -> None:
    assert sets_held({"a": {"CPU": 1e6, "GPU": 1e6}}, SPLIT, 8) == 8


def test_what_runs_stays_where_it_is() -> None:
    """On two nodes with half a GPU in use each there is no room for a whole one."""
    half = Place({"GPU": 0.5}, EVERYWHERE, {"a": 1, "b": 1})
    whole = Place({"GPU": 1.0}, EVERYWHERE)
    free = {"a": {"GPU": 1.0}, "b": {"GPU": 1.0}}
    assert sets_held(free, [half, whole], 8) == 0
    assert sets_held(free, [Place({"GPU": 0.5}, EVERYWHERE, {"a": 2}), whole], 8) == 1


def test_labels_and_numbers_per_node_are_kept() -> None:
    free = {"a": {"CPU": 8.0}, "b": {"CPU": 8.0}}
    assert sets_held(free, [Place({"CPU": 1.0}, frozenset({"a"}))], 32) == 8
    assert sets_held(free, [Place({"CPU": 1.0}, EVERYWHERE, {"a": 1}, per_node=1)], 32) == 2


def test_replicas_of_which_there_are_more_than_of_others_keep_their_place() -> None:
    """As while an update goes on."""
    first = Place({"CPU": 1.0}, EVERYWHERE, {"a": 3})
    second = Place({"CPU": 1.0}, EVERYWHERE, {"a": 1})
    assert sets_held({"a": {"CPU": 4.0}}, [first, second], 8) == 1
    assert sets_held({"a": {"CPU": 5.0}}, [first, second], 8) == 2
