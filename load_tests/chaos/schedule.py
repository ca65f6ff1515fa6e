"""What is struck, with what and when: a function of the seed."""

import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# A process that is stopped for less than a stage's deadlines is only slow; one that nobody
# continues is to be found hanging and replaced.
HANG_S: Final = (1.0, 8.0)


@dataclass(frozen=True, slots=True)
class Blow:
    """One signal to one process.

    wait_s: since the one before, or since that has healed.
    pick: which of the processes of `kind`, from 0 to below 1.
    hang_s: after SIGSTOP, until it is continued; None leaves that to the server's health checks.
    """

    kind: str
    number: signal.Signals
    wait_s: float
    pick: float
    hang_s: float | None = None

    def choose(self, count: int) -> int:
        return min(int(self.pick * count), count - 1)

    @property
    def label(self) -> str:
        if self.number == signal.SIGKILL:
            return "SIGKILL"
        return "SIGSTOP" if self.hang_s is None else f"SIGSTOP for {self.hang_s:.1f} s"


def blows(
    kinds: Sequence[str], kills: int, stops: int, every_s: float, seed: int
) -> tuple[Blow, ...]:
    """`kills` SIGKILLs and `stops` SIGSTOPs in a random order, `every_s` apart in the mean.

    Each signal goes round the kinds in a shuffled order, so that all get their share. Every other
    SIGSTOP is for good.
    """
    draw = random.Random(f"blows/{seed}")
    drawn = [
        *((signal.SIGKILL, kind, None) for kind in _rounds(kinds, kills, draw)),
        *(
            (signal.SIGSTOP, kind, None if number % 2 else round(draw.uniform(*HANG_S), 3))
            for number, kind in enumerate(_rounds(kinds, stops, draw))
        ),
    ]
    draw.shuffle(drawn)
    return tuple(
        Blow(kind, number, every_s * draw.uniform(0.1, 1.9), draw.random(), hang_s)
        for number, kind, hang_s in drawn
    )


def _rounds(kinds: Sequence[str], count: int, draw: random.Random) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        found += draw.sample(list(kinds), len(kinds))
    return found[:count]
