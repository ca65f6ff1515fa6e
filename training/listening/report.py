"""What is measured of clips, one by one and as a whole."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.listening.recogniser import Recogniser
from training.listening.sound import RATE_HZ, load, pitch_hz, voiced_s
from training.listening.words import lacks_end, repeats, word_errors

# A clip is truncated or empty, or has run away, beyond these shares of the teacher's length, or,
# without one, of what its text takes.
_SHORTEST, _LONGEST = 0.5, 2.0
_LETTERS_PER_S = 14.0


@dataclass(frozen=True)
class Clip:
    """A file of speech, what it is to say, and the teacher's file of the same sentence."""

    file: Path
    text: str
    teacher: Path | None = None


@dataclass(frozen=True)
class Row:
    """What was measured of a clip; None where it was not asked for."""

    file: str
    text: str
    seconds: float
    pitch_hz: float | None
    heard: str | None = None
    errors: int | None = None
    words: int | None = None
    mos: float | None = None
    ratio: float | None = None
    likeness: float | None = None

    @property
    def is_astray(self) -> bool:
        """Whether it is empty, truncated or runs on and on."""
        # A digit is a word.
        letters = len(self.text) + 4 * sum(sign.isdigit() for sign in self.text)
        expected = max(1.0, letters / _LETTERS_PER_S)
        ratio = self.seconds / expected if self.ratio is None else self.ratio
        return not _SHORTEST <= ratio <= _LONGEST

    @property
    def is_mostly_wrong(self) -> bool:
        """Whether more than half as many errors as words were heard."""
        return bool(self.words) and 2 * (self.errors or 0) > (self.words or 0)


@dataclass(frozen=True)
class Ears:
    """What listens; each may be missing but the first."""

    recogniser: Recogniser | None = None
    rate: Callable[[np.ndarray], float] | None = None
    embed: Callable[[np.ndarray], np.ndarray] | None = None

    def listen(self, clip: Clip) -> Row:
        samples = load(clip.file)
        heard = errors = words = mos = ratio = likeness = None
        if self.recogniser is not None:
            heard = self.recogniser.hear(samples) if len(samples) else ""
            errors, words = word_errors(clip.text, heard)
        if self.rate is not None:
            mos = self.rate(samples)
        if clip.teacher is not None:
            spoken = load(clip.teacher)
            ratio = voiced_s(samples) / max(voiced_s(spoken), 1e-3)
            if self.embed is not None:
                likeness = float(self.embed(samples) @ self.embed(spoken))
        seconds = len(samples) / RATE_HZ
        return Row(
            str(clip.file), clip.text, seconds, pitch_hz(samples), heard, errors, words, mos,
            ratio, likeness,
        )  # fmt: skip


def summary(rows: Sequence[Row]) -> dict[str, float | int | None]:
    """Return figures of all: errors are pooled over words, the rest are medians and counts."""
    words = sum(row.words or 0 for row in rows)
    wrong = sum(row.errors or 0 for row in rows)
    ratios = [row.ratio for row in rows if row.ratio is not None]
    heard = [(row.text, row.heard) for row in rows if row.heard is not None]
    near = sum(0.85 <= ratio <= 1.15 for ratio in ratios)
    return {
        "clips": len(rows),
        "seconds": round(sum(row.seconds for row in rows), 1),
        "wer_percent": round(100 * wrong / words, 2) if words else None,
        "perfect": sum(row.errors == 0 for row in rows if row.words),
        "mostly_wrong": sum(row.is_mostly_wrong for row in rows),
        "silent": sum(not transcript for _, transcript in heard),
        "lacking_end": sum(lacks_end(*each) for each in heard),
        "repeating": sum(repeats(*each) for each in heard),
        "mos": _median(row.mos for row in rows),
        "pitch_hz": _median(row.pitch_hz for row in rows),
        "duration_ratio": _median(ratios),
        "within_15_percent": round(near / len(ratios), 3) if ratios else None,
        "likeness": _median(row.likeness for row in rows),
        "astray": sum(row.is_astray for row in rows),
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 3) if known else None
