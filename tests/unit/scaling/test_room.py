"""How many sets of stages nodes hold."""

import random
from itertools import permutations, product

import pytest

from serve_app.scaling.room import Place, left_out, sets_held

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
        ({"a": {"CPU": 64.0, "GPU": 1.0}, "b": {"CPU": 64.0, "GPU": 1.0}}, 2),
        # Cores run out before GPUs do.
        ({"a": {"CPU": 9.0, "GPU": 8.0}}, 2),
        ({"a": {"CPU": 4.0, "GPU": 0.7}, "b": {"CPU": 4.0, "GPU": 0.3}}, 1),
    ],
)
def test_a_set_is_one_of_each_stage_wherever_it_is(
    free: dict[str, dict[str, float]], held: int
) -> None:
    assert sets_held(free, SPLIT, 8) == held


def best_fit(cards: list[float], shares: tuple[float, ...]) -> list[float] | None:
    """What is left of the cards once all have come in this order; None: one found none."""
    left = [round(card * 100) for card in cards]
    for share in shares:
        fitting = [card for card in left if card >= round(share * 100)]
        if not fitting:
            return None
        left.remove(min(fitting))
        left.append(min(fitting) - round(share * 100))
    return [card / 100 for card in left]


def placed_in_all_orders(cards: list[float], shares: list[float]) -> bool:
    return all(best_fit(cards, order) is not None for order in set(permutations(shares)))


@pytest.mark.parametrize(
    ("shares", "cards", "held"),
    [
        # Summed up they would be three.
        ([0.6], [1.0, 1.0], 2),
        ([0.6], [1.0, 0.5, 0.5], 1),
        ([0.25], [1.0, 1.0], 8),
        ([1.0], [1.0, 0.99], 1),
        ([0.5, 0.3, 0.2], [1.0, 0.0], 1),
        # 0.5 and 0.4 on one card and 0.3 twice on the other leave no room for the second 0.5.
        ([0.5, 0.3, 0.2], [1.0, 1.0], 1),
        ([0.25, 0.15, 0.1], [1.0, 1.0], 3),
        ([0.6, 0.25, 0.15], [1.0, 0.6, 0.4], 1),
        ([0.6, 0.25, 0.15], [0.59, 0.41, 0.5], 0),
        # Two stages share a card, and the third has one; not so where they may part.
        ([0.6, 0.4, 1.0], [1.0, 1.0], 1),
        ([0.6, 0.5, 1.0], [1.0, 1.0], 0),
    ],
)
def test_a_share_is_of_one_card_and_they_come_in_any_order(
    shares: list[float], cards: list[float], held: int
) -> None:
    """As a raylet gives them: the fullest card that has the share left."""
    places = [Place({"GPU": share}, frozenset({"a"})) for share in shares]
    free = {"a": {"CPU": 64.0, "GPU": sum(cards)}}
    assert sets_held(free, places, 8, {"a": cards}) == held
    if held * len(shares) <= 9:
        assert placed_in_all_orders(cards, shares * held)
    if (held + 1) * len(shares) <= 6:
        assert not placed_in_all_orders(cards, shares * (held + 1))


def test_what_the_nodes_hold_is_placed_in_any_order_and_grows_to_whole_sets() -> None:
    """Many drawn layouts: nothing counted has to wait, and set by set all cards are filled."""
    draw = random.Random(5)
    for _ in range(60):
        cards = [draw.choice([1.0, 1.0, 0.7, 0.4]) for _ in range(draw.randint(2, 4))]
        shares = [round(draw.uniform(0.1, 0.6), 1) for _ in range(draw.randint(1, 2))]
        places = [Place({"GPU": share}, frozenset({"a"})) for share in shares]
        held = sets_held({"a": {"GPU": sum(cards)}}, places, 3, {"a": cards})
        assert placed_in_all_orders(cards, shares * held), (cards, shares, held)
    cards = [1.0] * 4
    places = [Place({"GPU": share}, frozenset({"a"})) for share in (0.5, 0.3, 0.2)]
    counts = []
    while any(cards):
        counts.append(sets_held({"a": {"GPU": sum(cards)}}, places, 8, {"a": cards}))
        left = best_fit(cards, (0.2, 0.5, 0.3))
        assert left is not None
        cards = left
    assert counts == [3, 2, 1, 1]


def test_who_is_sent_to_a_node_whose_cards_are_too_full_is_not_counted() -> None:
    """Serve sees 0.8 GPUs there and sends the next one, which waits beside a node that is empty."""
    free = {"a": {"GPU": 2.0}, "b": {"GPU": 2.0}}
    assert sets_held(free, [Place({"GPU": 0.6}, EVERYWHERE)], 8) == 2
    assert sets_held(free, [Place({"GPU": 0.6}, EVERYWHERE, per_node=2)], 8) == 4


def test_of_many_only_what_is_plain_is_counted() -> None:
    """Nodes of eight cards: a few at first, then what is left."""
    nodes = frozenset(map(str, range(32)))
    free = {node: {"CPU": 256.0, "GPU": 8.0} for node in nodes}
    stages = [Place({"GPU": share}, nodes) for share in (0.5, 0.3, 0.2)]
    assert sets_held(free, stages, 256) == 4
    assert sets_held(free, [Place({"GPU": 1.0}, nodes)], 256) == 256
    assert sets_held(free, [Place({"GPU": 0.25}, nodes)], 200) == 200


def test_no_more_are_counted_than_are_wanted() -> None:
    assert sets_held({"a": {"CPU": 1e6, "GPU": 1e3}}, SPLIT, 8) == 8


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


@pytest.mark.parametrize(
    ("gpus", "shares", "counts", "missing"),
    [
        (2, [0.6], [3], [1]),
        (2, [0.5, 0.3, 0.2], [2, 2, 2], [0, 0, 0]),
        # One of each first, the largest before the others.
        (2, [0.3, 0.5, 0.2], [3, 3, 3], [1, 1, 1]),
        (2, [0.6, 0.5], [2, 1], [1, 0]),
        # Two models with a card each, and a third.
        (2, [1.0, 1.0, 1.0], [1, 1, 1], [0, 0, 1]),
        (1, [0.0, 1.0], [7, 1], [0, 0]),
        (0, [0.1], [1], [1]),
        (40, [0.6], [64], [24]),
    ],
)
def test_of_what_is_asked_for_at_once_the_rest_is_left_out(
    gpus: int, shares: list[float], counts: list[int], missing: list[int]
) -> None:
    assert left_out(gpus, shares, counts) == missing


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_left_out_that_could_be_put_somehow(seed: int) -> None:
    chance = random.Random(seed)
    gpus, stages = chance.randint(1, 3), chance.randint(1, 3)
    shares = [chance.choice([0.2, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7]) for _ in range(stages)]
    counts = [chance.randint(1, 2) for _ in range(stages)]
    wanted = [share for share, count in zip(shares, counts, strict=True) for _ in range(count)]
    fits = any(
        all(round(sum(card), 6) <= 1 for card in cards)
        for at in product(range(gpus), repeat=len(wanted))
        for cards in [[[s for s, a in zip(wanted, at, strict=True) if a == g] for g in range(gpus)]]
    )
    assert (not any(left_out(gpus, shares, counts))) is fits
