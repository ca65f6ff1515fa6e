"""Why a replica has no node: what it takes, and what the nodes have left of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from serve_app.scaling.room import EPSILON, Place

_GPU: Final = "GPU"
# Names of Ray, as people say them.
_NAMES: Final[Mapping[str, str]] = {"CPU": "cores", "memory": "bytes of memory"}


@dataclass(frozen=True, slots=True)
class Left:
    """What a node has left, and what each of its GPUs."""

    resources: Mapping[str, float]
    cards: Sequence[float] = ()


def lack(place: Place, nodes: Mapping[str, Left]) -> str | None:
    """What one more replica waits for; None: a node has room for it.

    Args:
        place: of the replica's stage, with those that run.
        nodes: of the whole cluster.
    """
    able = {node for node in nodes if node in place.nodes}
    if not able:
        return "no node has the labels that it is to have"
    for name, amount in place.resources.items():
        most = {node: _most(nodes[node], name, amount) for node in place.nodes}
        enough = {node for node in place.nodes if most[node] + EPSILON >= amount}
        if not enough:
            return _said(name, amount, max(most.values()), [nodes[node] for node in place.nodes])
        able &= enough
    if any(place.per_node is None or place.there.get(node, 0) < place.per_node for node in able):
        return None
    if able:
        return f"each node with room has the {place.per_node} that it may have"
    wanted = " and ".join(_amount(name, amount) for name, amount in place.resources.items())
    return f"no node has {wanted} left together"


def _most(left: Left, name: str, amount: float) -> float:
    """What one replica may have of a node: of GPUs a part of one, or whole ones."""
    if name != _GPU:
        return left.resources.get(name, 0.0)
    if amount <= 1:
        return max(left.cards, default=0.0)
    return float(sum(card + EPSILON >= 1 for card in left.cards))


def _said(name: str, amount: float, most: float, nodes: Sequence[Left]) -> str:
    if name != _GPU:
        return f"each takes {_amount(name, amount)}, and no node has more than {_round(most)} left"
    count = sum(len(node.cards) for node in nodes)
    if not count:
        return f"each takes {_amount(name, amount)}, and the nodes have none"
    whose = "the only GPU has" if count == 1 else f"none of the {count} GPUs has more than"
    return f"each takes {_amount(name, amount)}, and {whose} {_round(most)} left"


def _amount(name: str, amount: float) -> str:
    if name == _GPU:
        of_whole = "a whole GPU" if amount == 1 else f"{amount:g} GPUs"
        return f"{amount:g} of a GPU" if amount < 1 else of_whole
    return f"{amount:g} {_NAMES.get(name, name)}"


def _round(amount: float) -> str:
    return f"{max(0.0, round(amount, 4)):g}"
