"""How many whole sets of stages the nodes of a cluster hold."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

# Shares of one whole GPU may add up to a little more than one.
_EPSILON: Final = 1e-6


@dataclass(frozen=True, slots=True)
class Place:
    """What a replica of one stage takes, and where.

    Attributes:
        resources: amounts by the names of Ray: CPU, GPU.
        nodes: those that may have it.
        there: its replicas that run, by node.
        per_node: how many a node may have at most; None: as many as there is room for.
    """

    resources: Mapping[str, float]
    nodes: frozenset[str]
    there: Mapping[str, int] = field(default_factory=dict)
    per_node: int | None = None


def sets_held(free: Mapping[str, Mapping[str, float]], places: Sequence[Place], most: int) -> int:
    """Sets of one replica of each stage, those that run included, up to `most`.

    What runs stays where it is; the others go where the least is left, as Serve packs them.

    Args:
        free: what each node has that nobody but these stages takes.
        places: of the stages.
        most: where to stop.
    """
    left = {node: dict(resources) for node, resources in free.items()}
    counts = [dict(place.there) for place in places]
    for place in places:
        for node, count in place.there.items():
            _take(left.get(node, {}), place.resources, count)
    # The largest first: it is the one that would not fit any more.
    order = sorted(range(len(places)), key=lambda n: -max(places[n].resources.values(), default=0))
    for held in range(most):
        for number in order:
            if sum(counts[number].values()) > held:
                continue
            node = _found(left, places[number], counts[number])
            if node is None:
                return held
            counts[number][node] = counts[number].get(node, 0) + 1
            _take(left[node], places[number].resources, 1)
    return most


def _found(
    left: Mapping[str, Mapping[str, float]], place: Place, there: Mapping[str, int]
) -> str | None:
    """The fullest node that has room for one more."""
    fitting = [
        node
        for node, resources in left.items()
        if node in place.nodes
        and (place.per_node is None or there.get(node, 0) < place.per_node)
        and all(
            resources.get(name, 0.0) + _EPSILON >= amount
            for name, amount in place.resources.items()
        )
    ]
    return min(
        fitting,
        key=lambda node: [left[node].get(name, 0.0) for name in place.resources],
        default=None,
    )


def _take(left: dict[str, float], resources: Mapping[str, float], count: int) -> None:
    for name, amount in resources.items():
        left[name] = left.get(name, 0.0) - amount * count
