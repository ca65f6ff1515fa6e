"""Who has how many streams: what one caller knows of the replicas of a stage. Without Ray.

A replica tells its number whenever it accepts or rejects a call, and when it is asked. Between two
such words the caller counts its own calls, and what others have there is taken to stay as it was.
"""

import random
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

# So long a replica that has rejected a call is not called again: at its end, or once it is asked.
_CLOSED_S: Final = 0.25
_IDLE_TIMES: Final = 10
# As how many more a stream counts that is late. With one more, a replica 32 times slower than the
# others kept twice as many as it could carry (load_tests.simulator.routing).
_LATE_COUNTS: Final = 3

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Replica:
    """own: calls of this caller; others: of all others, when last heard of; late: those of its own
    whose listeners have nothing to hear, when last looked at.
    """

    own: int = 0
    others: int = 0
    late: int = 0
    heard_s: float = float("-inf")
    closed_until_s: float = float("-inf")
    unheard: int = 0

    @property
    def load(self) -> int:
        return self.own + self.others


class Places(Generic[K]):
    """The replicas of one stage, by keys of any kind, and how many streams each has.

    Args:
        clock: monotonic seconds.
        pick: one of several that are equal; by chance, so that callers do not all choose alike.
    """

    def __init__(
        self, clock: Callable[[], float], pick: Callable[[list[K]], K] = random.choice
    ) -> None:
        self._clock = clock
        self._pick = pick
        self._replicas: dict[K, _Replica] = {}

    def __len__(self) -> int:
        """Live replicas."""
        return len(self._replicas)

    @property
    def others(self) -> int:
        """Streams that other callers have, as far as is known."""
        return sum(replica.others for replica in self._replicas.values())

    def set_live(self, keys: Iterable[K]) -> None:
        """These are all that are live; a stream of one that is not takes nobody's place."""
        self._replicas = {key: self._replicas.get(key) or _Replica() for key in keys}

    def load(self, key: K) -> int:
        replica = self._replicas.get(key)
        return replica.load if replica is not None else 0

    def has_room(self, places: int, excluded: Collection[K] = ()) -> bool:
        """Whether a replica has fewer than `places` streams."""
        return any(
            replica.load < places for key, replica in self._replicas.items() if key not in excluded
        )

    def room(self, places: int) -> int:
        """Streams that there is room for beside those there are, with `places` in each replica;
        one that does not answer has none.
        """
        return sum(
            max(0, places - replica.load)
            for replica in self._replicas.values()
            if not replica.unheard
        )

    def take(self, limit: int, excluded: Collection[K] = (), near: Collection[K] = ()) -> K | None:
        """Choose the replica for one more call, and count it.

        The one with the fewest streams, of those that are `near` if there are any; one that does
        not answer, or has just rejected a call, only where there is no other. A stream that is late
        counts as several, so that a replica that is slower than others gets fewer. None: all have
        `limit` streams or are `excluded`.
        """
        now_s = self._clock()
        open_ = {
            key: (
                replica.unheard > 0 or replica.closed_until_s > now_s,
                key not in near,
                replica.load + _LATE_COUNTS * replica.late,
            )
            for key, replica in self._replicas.items()
            if key not in excluded and replica.load < limit
        }
        if not open_:
            return None
        least = min(open_.values())
        key = self._pick([key for key, rank in open_.items() if rank == least])
        self._replicas[key].own += 1
        return key

    def give_back(self, key: K) -> None:
        """A call that was counted by `take` is over, or was not made."""
        replica = self._replicas.get(key)
        if replica is not None:
            replica.own = max(0, replica.own - 1)

    def close(self, key: K) -> None:
        """A replica has rejected a call."""
        replica = self._replicas.get(key)
        if replica is not None:
            replica.closed_until_s = self._clock() + _CLOSED_S

    def heard(self, key: K, num_streams: int) -> None:
        """A replica has said how many streams it has, those of this caller among them."""
        replica = self._replicas.get(key)
        if replica is not None:
            replica.others = max(0, num_streams - replica.own)
            replica.heard_s, replica.unheard = self._clock(), 0

    def set_late(self, key: K, count: int) -> None:
        """So many streams of this caller have made their listeners wait."""
        replica = self._replicas.get(key)
        if replica is not None:
            replica.late = count

    def not_heard(self, key: K) -> int:
        """A replica was asked in vain; how many times in a row by now."""
        replica = self._replicas.get(key)
        if replica is None:
            return 0
        replica.unheard += 1
        return replica.unheard

    def to_ask(self, older_than_s: float) -> list[K]:
        """Replicas whose last word is so old; of those that have no stream as far as is known, and
        answer, ten times as old: others may have sent them some.
        """
        now_s = self._clock()
        return [
            key
            for key, replica in self._replicas.items()
            if now_s - replica.heard_s
            >= older_than_s * (1 if replica.load or replica.unheard else _IDLE_TIMES)
        ]

    @property
    def answering(self) -> int:
        """Replicas that were not asked in vain."""
        return sum(not replica.unheard for replica in self._replicas.values())
