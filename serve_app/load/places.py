"""Who has how many streams: what one caller knows of the replicas of a stage. Without Ray.

A replica tells its number whenever it accepts or rejects a call, with each item of its streams, and
when it is asked. Between two such words the caller counts its own calls, and what others have there
is taken to stay as it was.
"""

import random
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

# So long a replica that has rejected a call is not called again: at its end, or once it is asked.
_CLOSED_S: Final = 0.25
# And one that had no room for a stream: places are free again soon.
_REFUSED_S: Final = 0.02
_IDLE_TIMES: Final = 10
# Those that seem full are asked so many times as often as the others, and so many at once.
LOOKS: Final = 5
_FULL_AT_ONCE: Final = 4
# As how many more a stream counts that is late. With one more, a replica 32 times slower than the
# others kept twice as many as it could carry (load_tests.simulator.routing).
_LATE_COUNTS: Final = 3
# Differences of so much of a replica's places are smaller than what is not known yet
# (load_tests.simulator.balance).
_ALIKE: Final = 1 / 8

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

    def has_room(self, places: int) -> bool:
        """Whether a replica has fewer than `places` streams."""
        return any(replica.load < places for replica in self._replicas.values())

    def room(self, places: int) -> int:
        """Streams that there is room for beside those there are, with `places` in each replica;
        one that does not answer has none.
        """
        return sum(
            max(0, places - replica.load)
            for replica in self._replicas.values()
            if not replica.unheard
        )

    def take(
        self,
        limit: int,
        excluded: Collection[K] = (),
        near: Collection[K] = (),
        places: int | None = None,
    ) -> K | None:
        """Choose the replica for one more call, and count it.

        The one with the fewest streams, of those that are `near` if there are any; one that does
        not answer, or has just rejected a call, only where there is no other, and one whose
        `places` are taken after all that have one free. A stream that is late counts as several, so
        that a replica that is slower than others gets fewer. What others have there is a moment
        old, and all callers see the same: where it differs by little, a caller goes by its own
        calls, or all would choose the same one. None: all have `limit` streams or are `excluded`.
        """
        now_s = self._clock()
        open_ = {
            key: (
                replica.unheard > 0 or replica.closed_until_s > now_s,
                places is not None and replica.load >= places,
                key not in near,
            )
            for key, replica in self._replicas.items()
            if key not in excluded and replica.load < limit
        }
        if not open_:
            return None
        first = min(open_.values())
        loads = {
            key: self._replicas[key].load + _LATE_COUNTS * self._replicas[key].late
            for key, rank in open_.items()
            if rank == first
        }
        alike = min(loads.values()) + int((places or 0) * _ALIKE)
        owns = {key: self._replicas[key].own for key, load in loads.items() if load <= alike}
        fewest = min(owns.values())
        key = self._pick([key for key, own in owns.items() if own == fewest])
        self._replicas[key].own += 1
        return key

    def give_back(self, key: K) -> None:
        """A call that was counted by `take` is over, or was not made."""
        replica = self._replicas.get(key)
        if replica is not None:
            replica.own = max(0, replica.own - 1)

    def close(self, key: K) -> None:
        """A replica has rejected a call."""
        self._close(key, _CLOSED_S)

    def refused(self, key: K) -> None:
        """A replica has taken a call and had no room for its stream: others are asked first, which
        nothing may have been heard of since they were full.
        """
        self._close(key, _REFUSED_S)

    def _close(self, key: K, seconds: float) -> None:
        replica = self._replicas.get(key)
        if replica is not None:
            replica.closed_until_s = max(replica.closed_until_s, self._clock() + seconds)

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

    def to_ask(self, older_than_s: float, places: int | None = None) -> list[K]:
        """Replicas whose last word is so old; of those that have no stream as far as is known, and
        answer, ten times as old: others may have sent them some. A few whose `places` are all
        taken are asked sooner: nobody calls them, so that nothing else tells when they are not.
        """
        now_s = self._clock()
        ages = {key: now_s - replica.heard_s for key, replica in self._replicas.items()}
        due, full = list[K](), list[K]()
        for key, replica in self._replicas.items():
            times = 1 if replica.load or replica.unheard else _IDLE_TIMES
            if ages[key] >= older_than_s * times:
                due.append(key)
            elif places is not None and replica.load >= places:
                full.append(key)
        early = [key for key in full if ages[key] >= older_than_s / LOOKS]
        return due + sorted(early, key=lambda key: -ages[key])[:_FULL_AT_ONCE]

    @property
    def answering(self) -> int:
        """Replicas that were not asked in vain."""
        return sum(not replica.unheard for replica in self._replicas.values())
