"""How many whole sets of stages the nodes of a cluster hold.

Serve picks a node by what it has in all, Ray's raylet there a card: the fullest that has the share
left, and whoever finds none waits for that node, even where another has room. In which order
replicas that are asked for together come to their node is by chance, so that a set counts only
where its shares find their cards in any.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, TypeAlias

# Shares of one whole GPU may add up to a little more than one.
EPSILON: Final = 1e-6
# Ray counts in such parts of a card.
_CARD: Final = 10_000
# Orders of more than so many are not tried.
_MOST_TRIED: Final = 9
# Ways to put shares on cards, of which no more than so many are tried.
_MOST_TRIES: Final = 5_000
# What Serve sorts by, before all else.
_FIRST: Final = ("GPU", "CPU", "memory")

# What each card has left, ascending; how many want which share.
Cards: TypeAlias = tuple[int, ...]
Shares: TypeAlias = tuple[tuple[int, int], ...]


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


def sets_held(
    free: Mapping[str, Mapping[str, float]],
    places: Sequence[Place],
    most: int,
    cards: Mapping[str, Sequence[float]] | None = None,
    busy: Iterable[str] = (),
) -> int:
    """Sets of one replica of each stage, those that run included, up to `most`.

    What runs stays where it is; the others go where Serve and Ray put them, whether they are asked
    for one set after the other or all at once.

    Args:
        free: what each node has that nobody but these stages takes.
        places: of the stages.
        most: where to stop.
        cards: what each GPU of a node has left, these stages having theirs as well; where it is not
            said, as few GPUs as can be are in use.
        busy: nodes with other replicas of Serve, which it prefers.
    """
    room = _Room.found(free, places, cards or {}, busy)
    held = _one_by_one(room, places, most)
    while held and not _at_once(room, places, held):
        held -= 1
    return held


def sets_grown(gpus: float, shares: Sequence[float]) -> tuple[int, list[float]]:
    """Sets that an empty node holds which are asked for one after the other, and what each of its
    GPUs has left then.

    Args:
        gpus: of the node.
        shares: of a GPU, of the stages.
    """
    wanted = sorted((_parts(share) for share in shares if share), reverse=True)
    cards = tuple(sorted(map(_parts, _whole(gpus))))
    held = 0
    while wanted and _in_any_order(cards, tuple(sorted(Counter(wanted).items()))):
        for share in wanted:
            cards = _with(cards, share) or cards
        held += 1
    return held, [card / _CARD for card in cards]


def left_out(gpus: int, shares: Sequence[float], counts: Sequence[int]) -> list[int]:
    """Of the replicas of each stage, how many find no card however they are put on empty ones; of
    too many, one of each stage has its share before another has its second.

    Args:
        gpus: how many cards there are.
        shares: of a card, of one replica of each stage.
        counts: of its replicas.
    """
    cards, held = (_CARD,) * gpus, tuple[int, ...]()
    missing = [0 for _ in shares]
    order = sorted(range(len(shares)), key=lambda stage: -shares[stage])
    for turn in range(max(counts, default=0)):
        for stage in order:
            if turn >= counts[stage] or not shares[stage]:
                continue
            more = tuple(sorted((*held, _parts(shares[stage])), reverse=True))
            if not missing[stage] and _can_hold(cards, more):
                held = more
            else:
                missing[stage] += 1
    return missing


@dataclass(slots=True)
class _Room:
    """What is left of all nodes.

    Attributes:
        left: amounts by node.
        cards: of each node, before anything is put there.
        counts: replicas of each place, by node.
        put: shares of cards wanted by what was put, by node.
        busy: nodes with any replica.
    """

    left: dict[str, dict[str, float]]
    cards: dict[str, Cards]
    counts: list[dict[str, int]]
    put: dict[str, Counter[int]]
    busy: set[str]

    @classmethod
    def found(
        cls,
        free: Mapping[str, Mapping[str, float]],
        places: Sequence[Place],
        cards: Mapping[str, Sequence[float]],
        busy: Iterable[str],
    ) -> "_Room":
        left = {node: dict(resources) for node, resources in free.items()}
        for place in places:
            for node, count in place.there.items():
                _take(left.get(node, {}), place.resources, count)
        known = {
            node: cards.get(node) or _whole(resources.get("GPU", 0.0))
            for node, resources in left.items()
        }
        return cls(
            left,
            {node: tuple(sorted(map(_parts, shares))) for node, shares in known.items()},
            [dict(place.there) for place in places],
            {},
            {*busy, *(node for place in places for node in place.there)},
        )

    def copied(self) -> "_Room":
        return _Room(
            {node: dict(resources) for node, resources in self.left.items()},
            self.cards,
            [dict(counts) for counts in self.counts],
            {node: Counter(shares) for node, shares in self.put.items()},
            set(self.busy),
        )

    def placed(self, number: int, place: Place) -> bool:
        """Put one more where Serve has it go; false where that cannot be, or may not come to be."""
        fitting = [
            node
            for node, resources in self.left.items()
            if node in place.nodes
            and (place.per_node is None or self.counts[number].get(node, 0) < place.per_node)
            and all(
                resources.get(name, 0.0) + EPSILON >= amount
                for name, amount in place.resources.items()
            )
        ]
        if not fitting:
            return False
        node = min(fitting, key=lambda one: (one not in self.busy, _order(self.left[one])))
        self.counts[number][node] = self.counts[number].get(node, 0) + 1
        _take(self.left[node], place.resources, 1)
        self.busy.add(node)
        share = _parts(place.resources.get("GPU", 0.0))
        if not share:
            return True
        wanted = self.put.setdefault(node, Counter())
        wanted[share] += 1
        return _in_any_order(self.cards[node], tuple(sorted(wanted.items())))


def _one_by_one(room: _Room, places: Sequence[Place], most: int) -> int:
    room = room.copied()
    for held in range(most):
        for number in _largest_first(places):
            is_there = sum(room.counts[number].values()) > held
            if not is_there and not room.placed(number, places[number]):
                return held
    return most


def _at_once(room: _Room, places: Sequence[Place], sets: int) -> bool:
    room = room.copied()
    for number in _largest_first(places):
        for _ in range(sets - sum(room.counts[number].values())):
            if not room.placed(number, places[number]):
                return False
    return True


def _largest_first(places: Sequence[Place]) -> list[int]:
    """As Serve sorts what it has to place."""
    numbers = range(len(places))
    return sorted(numbers, key=lambda number: _order(places[number].resources), reverse=True)


def _order(resources: Mapping[str, float]) -> tuple[float, ...]:
    return tuple(resources.get(name, 0.0) for name in _FIRST)


def _whole(gpus: float) -> list[float]:
    """As many whole cards as can be."""
    return [*(1.0 for _ in range(int(gpus + EPSILON))), gpus % 1.0]


def _parts(share: float) -> int:
    return round(share * _CARD)


@lru_cache(maxsize=1 << 14)
def _in_any_order(cards: Cards, shares: Shares) -> bool:
    """Whether all get their shares in whatever order they come; of many only if that is plain."""
    if len(shares) == 1:
        ((share, count),) = shares
        then: Cards | None = cards
        for _ in range(count):
            then = None if then is None else _with(then, share)
        return then is not None
    if all(_is_plain(cards, shares, share) for share, _ in shares):
        return True
    if sum(count for _, count in shares) > _MOST_TRIED:
        return False
    for number, (share, count) in enumerate(shares):
        then = _with(cards, share)
        if then is None:
            return False
        fewer = ((share, count - 1),) if count > 1 else ()
        if not _in_any_order(then, (*shares[:number], *fewer, *shares[number + 1 :])):
            return False
    return True


def _can_hold(cards: Cards, shares: tuple[int, ...]) -> bool:
    """Whether the shares, none above a whole card and the largest first, can be put on the cards;
    true as well where too much had to be tried to know.
    """
    tries = iter(range(_MOST_TRIES))

    def can(cards: Cards, shares: tuple[int, ...]) -> bool:
        if not shares or next(tries, None) is None:
            return True
        if sum(shares) > sum(cards):
            return False
        for card in sorted({card for card in cards if card >= shares[0]}):
            left = list(cards)
            left.remove(card)
            insort(left, card - shares[0])
            if can(tuple(left), shares[1:]):
                return True
        return False

    return can(cards, shares)


def _is_plain(cards: Cards, shares: Shares, share: int) -> bool:
    """Whether at the turn of any that wants `share` more is left in all than there can be on cards
    none of which has enough.
    """
    if share > _CARD:
        return False
    others = sum(one * count for one, count in shares) - share
    return sum(cards) - others > sum(min(card, share - 1) for card in cards)


def _with(cards: Cards, share: int) -> Cards | None:
    """What is left after one took its share as a raylet gives it; None: it has to wait."""
    left = list(cards)
    if share >= _CARD:
        whole, rest = divmod(share, _CARD)
        first = bisect_left(left, _CARD)
        if rest or len(left) - first < whole:
            return None
        left[first : first + whole] = []
        left[:0] = [0] * whole
        return tuple(left)
    at = bisect_left(left, share)
    if at == len(left):
        return None
    insort(left, left.pop(at) - share)
    return tuple(left)


def _take(left: dict[str, float], resources: Mapping[str, float], count: int) -> None:
    for name, amount in resources.items():
        left[name] = left.get(name, 0.0) - amount * count
