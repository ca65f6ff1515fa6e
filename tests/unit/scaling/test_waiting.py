"""What a replica that has no node is said to wait for."""

import pytest

from serve_app.scaling.room import Place
from serve_app.scaling.waiting import Left, lack

ALL, A, B = frozenset({"a", "b"}), frozenset({"a"}), frozenset({"b"})
PAIR = Left({"CPU": 8.0, "GPU": 0.8}, [0.4, 0.4])
ONE = Left({"CPU": 1.0, "GPU": 0.5}, [0.5])


@pytest.mark.parametrize(
    ("place", "nodes", "says"),
    [
        (
            Place({"CPU": 1.0, "GPU": 0.6}, ALL),
            {"a": PAIR, "b": ONE},
            "each takes 0.6 of a GPU, and none of the 3 GPUs has more than 0.5 left",
        ),
        (Place({"CPU": 1.0, "GPU": 0.5}, ALL), {"a": PAIR, "b": ONE}, None),
        (
            Place({"CPU": 2.0, "GPU": 0.5}, ALL),
            {"a": PAIR, "b": ONE},
            "no node has 2 cores and 0.5 of a GPU left together",
        ),
        (
            Place({"GPU": 0.6}, B),
            {"a": PAIR, "b": ONE},
            "each takes 0.6 of a GPU, and the only GPU has 0.5 left",
        ),
        (
            Place({"GPU": 1.0}, A),
            {"a": Left({"CPU": 4.0})},
            "each takes a whole GPU, and the nodes have none",
        ),
        (Place({"GPU": 2.0}, A), {"a": Left({"GPU": 2.0}, [1.0, 1.0])}, None),
        (
            Place({"CPU": 9.0}, ALL),
            {"a": PAIR, "b": ONE},
            "each takes 9 cores, and no node has more than 8 left",
        ),
        (
            Place({"CPU": 1.0}, ALL, {"a": 2, "b": 2}, 2),
            {"a": PAIR, "b": ONE},
            "each node with room has the 2 that it may have",
        ),
        (
            Place({"GPU": 0.6}, ALL, {"a": 2, "b": 1}, 2),
            {"a": PAIR, "b": ONE},
            "each takes 0.6 of a GPU, and none of the 3 GPUs has more than 0.5 left",
        ),
        (Place({"CPU": 1.0}, ALL, {"a": 2, "b": 1}, 2), {"a": PAIR, "b": ONE}, None),
        (
            Place({"CPU": 1.0}, frozenset()),
            {"a": PAIR},
            "no node has the labels that it is to have",
        ),
    ],
)
def test_it_is_what_no_node_has(place: Place, nodes: dict[str, Left], says: str | None) -> None:
    assert lack(place, nodes) == says
