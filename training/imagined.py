"""Sentences that the teacher did not speak, as rough codes made of its phonemes.

Speech is dear and phonemes are cheap: three times as many sentences as can be spoken have their
phonemes in the plan. Each phoneme gets a length like those that it has in the corpus, and each
frame the codes of a spoken frame with the same phonemes. Nobody would want to hear it, but it shows
the talker which sounds a spelling stands for, and in which order.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from training.codes import CodeBook
from training.corpus import FRAME_SAMPLES, SLOTS, TEACHER_STEP_SAMPLES, Utterance
from training.plan import Planned

_EDGE_STEPS = (3.2, 8.0)  # silence in front and behind, as the corpus is trimmed
_LONGEST_POOL = 200


class Lengths:
    """How long each phoneme lasts, by voice, in the teacher's steps of 25 ms."""

    def __init__(self, rows: Iterable[Utterance]) -> None:
        found: dict[tuple[str, int], list[int]] = defaultdict(list)
        for row in rows:
            for phoneme, steps in zip(row.phonemes[1:-1], row.steps[1:-1], strict=True):
                pool = found[row.voice, phoneme]
                if len(pool) < _LONGEST_POOL:
                    pool.append(steps)
        self._found = {key: np.array(pool) for key, pool in found.items()}
        self._usual = float(np.mean(np.concatenate(list(self._found.values()))))

    def draw(self, voice: str, phonemes: Sequence[int], rng: np.random.Generator) -> np.ndarray:
        """Return lengths of `phonemes`, near their means: float64 [n]."""
        steps = []
        for phoneme in phonemes:
            pool = self._found.get((voice, phoneme))
            drawn = self._usual if pool is None else 0.5 * pool.mean() + 0.5 * rng.choice(pool)
            steps.append(drawn)
        return np.array(steps)


class Frames:
    """Where in the corpus each set of four phoneme labels occurs, by voice."""

    def __init__(self, book: CodeBook) -> None:
        voices = np.repeat(np.array(book.voices), np.diff(book.starts))
        self._exact: dict[tuple[str, bytes], list[int]] = defaultdict(list)
        self._middle: dict[tuple[str, bytes], list[int]] = defaultdict(list)
        for index, (voice, labels) in enumerate(zip(voices, book.labels, strict=True)):
            for pools, key in (
                (self._exact, labels.tobytes()),
                (self._middle, labels[1:3].tobytes()),
            ):
                pool = pools[str(voice), key]
                if len(pool) < _LONGEST_POOL:
                    pool.append(index)

    def pick(self, voice: str, labels: np.ndarray, rng: np.random.Generator) -> int:
        """Return the index of a frame with `labels` uint8 [4], or with its middle ones, or any."""
        pool = self._exact.get((voice, labels.tobytes()))
        pool = pool or self._middle.get((voice, labels[1:3].tobytes())) or [0]
        return pool[int(rng.integers(len(pool)))]


def imagine(
    book: CodeBook, rows: Sequence[Utterance], planned: Iterable[Planned], seed: int
) -> CodeBook:
    """Make codes for the sentences of `planned` that `book` lacks, with the pace of `rows`."""
    rng = np.random.default_rng(seed)
    lengths, frames = Lengths(rows), Frames(book)
    spoken = set(book.ids.tolist())
    codes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    items = [item for item in planned if item.id not in spoken]
    for item in items:
        steps = [_EDGE_STEPS[0], *lengths.draw(item.voice, item.tokens, rng), _EDGE_STEPS[1]]
        ends = np.cumsum(steps) * TEACHER_STEP_SAMPLES
        count = -(-int(ends[-1]) // FRAME_SAMPLES)
        slot = FRAME_SAMPLES // SLOTS
        where = np.searchsorted(ends, np.arange(count * SLOTS) * slot + slot // 2, side="right")
        said = np.array([0, *item.tokens, 0, 0], np.uint8)[where].reshape(-1, SLOTS)
        labels.append(said)
        codes.append(book.codes[[frames.pick(item.voice, row, rng) for row in said]])
    return CodeBook(
        np.concatenate(codes),
        np.concatenate(labels),
        np.concatenate([[0], np.cumsum([len(c) for c in codes])]),
        np.array([item.id for item in items]),
        np.zeros(len(items), bool),
        tuple(item.voice for item in items),
        tuple(item.text for item in items),
    )
