"""Which sentence is spoken by which voice; decided once, so that a corpus can grow in any order.

A list of sentences has tab-separated columns: source, text as written, text as spoken, phonemes
(American), phonemes (British). A plan has: id, voice, teacher's token ids, text.
"""

import lzma
import random
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_up
from pathlib import Path
from typing import Final

# How often a source is drawn: old prose must not set the tone, and numbers must be learnt.
SHARES: Final[Mapping[str, float]] = {
    "made": 4.5,
    "wordnet": 4.0,
    "austen": 1.2,
    "jargon": 0.8,
    "moby-dick": 0.4,
    "devil": 0.3,
}
TEACHER_VOICES: Final[Mapping[str, str]] = {
    "heart": "af_heart",
    "michael": "am_michael",
    "emma": "bf_emma",
    "daniel": "bm_daniel",
}
ONE_IN_HELD_OUT: Final = 50
"""Sentences whose id this divides are kept from training."""
_LONGEST: Final = 260
_WORD: Final = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True)
class Planned:
    """One sentence to speak."""

    id: int
    voice: str
    tokens: tuple[int, ...]
    text: str

    def row(self) -> str:
        return f"{self.id}\t{self.voice}\t{' '.join(map(str, self.tokens))}\t{self.text}"


def draw(
    sentences: Path,
    count: int,
    voices: Sequence[str],
    tokens_of: Callable[[str], list[int]],
    kept_out: Collection[str],
    seed: int,
) -> list[Planned]:
    """Draw sentences by source, each once; those of `kept_out` never (by their words alone).

    Which of them are held out of training their words decide, so that a talker that goes on with
    another plan has not learnt what it is judged by.

    Args:
        sentences: the list.
        count: how many, if there are as many.
        voices: each sentence is spoken by one of them.
        tokens_of: phonemes to the teacher's ids.
        kept_out: what evaluation uses.
        seed: decides everything.
    """
    rng = random.Random(seed)
    forbidden = {words_of(text) for text in kept_out}
    heaps: dict[str, list[list[str]]] = defaultdict(list)
    for line in sentences.read_text(encoding="utf-8").splitlines():
        row = line.split("\t")
        if row[0] in SHARES:
            heaps[row[0]].append(row)
    for heap in heaps.values():
        rng.shuffle(heap)
    planned: list[Planned] = []
    held_out, others = count_up(0, ONE_IN_HELD_OUT), _indivisible(ONE_IN_HELD_OUT)
    while len(planned) < count and heaps:
        names = sorted(heaps)
        name = rng.choices(names, [SHARES[n] for n in names])[0]
        _, text, _, american, british = heaps[name].pop()
        if not heaps[name]:
            del heaps[name]
        voice = rng.choice(list(voices))
        tokens = tokens_of(british if TEACHER_VOICES[voice].startswith("b") else american)
        if 0 < len(tokens) <= _LONGEST and words_of(text) not in forbidden:
            numbers = held_out if _is_held_out(text) else others
            planned.append(Planned(next(numbers), voice, tuple(tokens), text))
    return planned


def _is_held_out(text: str) -> bool:
    return zlib.crc32(words_of(text).encode()) % ONE_IN_HELD_OUT == 0


def _indivisible(number: int) -> Iterator[int]:
    return (each for each in count_up(1) if each % number)


def words_of(text: str) -> str:
    """By which two sentences are the same."""
    return " ".join(_WORD.findall(text.lower()))


def write(planned: Sequence[Planned], file: Path) -> None:
    """Write a plan."""
    file.write_text("".join(item.row() + "\n" for item in planned), encoding="utf-8")


def read(file: Path) -> Iterator[Planned]:
    """Yield the rows of a plan, compressed by xz or not."""
    data = file.read_bytes()
    text = (lzma.decompress(data) if file.suffix == ".xz" else data).decode("utf-8")
    for line in text.splitlines():
        number, voice, tokens, text = line.split("\t")
        yield Planned(int(number), voice, tuple(map(int, tokens.split())), text)
