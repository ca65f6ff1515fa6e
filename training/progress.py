"""Training by the clock: a step is given minutes, and all schedules run over what it has used."""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass
class Clock:
    """Time spent on one piece of training, over all calls.

    total_s: what the schedules span. limit_s: what this call may use. spent_s: by earlier calls.
    """

    total_s: float
    limit_s: float
    spent_s: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def used_s(self) -> float:
        return self.spent_s + time.monotonic() - self.began

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return min(1.0, self.used_s / self.total_s)

    @property
    def is_over(self) -> bool:
        return time.monotonic() - self.began >= self.limit_s or self.used_s >= self.total_s

    def rate(self, peak: float, warm_up: float = 0.02, final: float = 0.02) -> float:
        """Learning rate now: a linear rise, then half a cosine down to `final` of the peak."""
        p = self.progress
        if p < warm_up:
            return peak * (p / warm_up + 0.01)
        along = (p - warm_up) / (1 - warm_up)
        return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * along)))


class Log:
    """Numbers as lines of JSON in a file, and every few seconds on the screen."""

    def __init__(self, file: Path, every_s: float = 10.0) -> None:
        self._file = file
        self._every_s = every_s
        self._told = 0.0
        file.parent.mkdir(parents=True, exist_ok=True)

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._told >= self._every_s

    def write(self, **numbers: Any) -> None:
        """Write one line."""
        self._told = time.monotonic()
        rounded = {
            k: round(float(v.detach() if isinstance(v, Tensor) else v), 4)
            for k, v in numbers.items()
        }
        with self._file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(rounded) + "\n")
        print(self._file.stem, " ".join(f"{k} {v:g}" for k, v in rounded.items()), flush=True)
