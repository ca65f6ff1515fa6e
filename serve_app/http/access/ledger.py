"""What keys use, in one place for all ingresses that share it: plain values in and out.

An ingress asks before each request of a key that has limits. It states how many requests of the key
it has, not that it has one more, so that an answer that was lost, or a ledger that began anew, puts
nothing out of order.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

MINUTE_S: Final = 60.0
# Ingresses tell of themselves more often than this while they have requests; of one that is gone
# nothing is running any more.
SILENT_S: Final = 10.0
# Keys that have gone from the file are forgotten after so many others.
_MAX_SEEN: Final = 10_000


@dataclass(frozen=True, slots=True)
class Allowed:
    """The limits of a key; None: none."""

    per_minute: float | None = None
    at_once: int | None = None

    def share(self, number: int) -> "Allowed":
        """The part that one of `number` may give by itself: never less than one request."""
        return Allowed(
            None if self.per_minute is None else self.per_minute / number,
            None if self.at_once is None else math.ceil(self.at_once / number),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a request may begin.

    Attributes:
        refused: the limit that is in its way.
        left: requests that the key may make at once now.
        full_s: until it may make as many as it ever may.
        next_s: until it may make one.
    """

    refused: Literal["rate", "at_once"] | None = None
    left: float = 0.0
    full_s: float = 0.0
    next_s: float = 0.0


@dataclass(slots=True)
class _Use:
    """`tokens` are requests that a key may make; `running` those under way, by ingress."""

    tokens: float = math.inf
    at_s: float = 0.0
    running: dict[str, int] = field(default_factory=dict)


class Ledger:
    """For one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used: dict[str, _Use] = {}
        self._heard_s: dict[str, float] = {}

    def ask(self, ingress: str, key: str, allowed: Allowed, running: int) -> Verdict:
        """Whether the ingress may begin a request of the key, with which it has `running`.

        A request that is refused uses nothing up.
        """
        now_s = self._hear(ingress)
        use = self._filled(key, allowed, now_s)
        use.running[ingress] = running - 1
        there = sum(use.running.values())
        if allowed.at_once is not None and there >= allowed.at_once:
            return self._verdict(use, allowed, "at_once")
        if allowed.per_minute is not None:
            # A part of less than one request would let nothing through.
            if use.tokens < 1:
                return self._verdict(use, allowed, "rate")
            use.tokens -= 1
        use.running[ingress] = running
        return self._verdict(use, allowed, None)

    def tell(self, ingress: str, running: Mapping[str, int]) -> None:
        """How many requests the ingress has of these keys."""
        now_s = self._hear(ingress)
        for key, count in running.items():
            use = self._used.setdefault(key, _Use(at_s=now_s))
            if count:
                use.running[ingress] = count
            else:
                use.running.pop(ingress, None)

    def _hear(self, ingress: str) -> float:
        now_s = self._clock()
        self._heard_s[ingress] = now_s
        gone = [name for name, at_s in self._heard_s.items() if now_s - at_s > SILENT_S]
        for name in gone:
            del self._heard_s[name]
            for use in self._used.values():
                use.running.pop(name, None)
        return now_s

    def _filled(self, key: str, allowed: Allowed, now_s: float) -> _Use:
        use = self._used.get(key)
        if use is None:
            if len(self._used) >= _MAX_SEEN:
                self._used = {name: u for name, u in self._used.items() if any(u.running.values())}
            use = self._used[key] = _Use(at_s=now_s)
        if allowed.per_minute is not None:
            gained = (now_s - use.at_s) * allowed.per_minute / MINUTE_S
            use.tokens = min(use.tokens + gained, max(1.0, allowed.per_minute))
        use.at_s = now_s
        return use

    def _verdict(
        self, use: _Use, allowed: Allowed, refused: Literal["rate", "at_once"] | None
    ) -> Verdict:
        rate = allowed.per_minute
        if rate is None:
            return Verdict(refused)
        missing = max(1.0, rate) - use.tokens
        return Verdict(
            refused,
            use.tokens,
            missing / rate * MINUTE_S,
            max(0.0, 1 - use.tokens) / rate * MINUTE_S,
        )
