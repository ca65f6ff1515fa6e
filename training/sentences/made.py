"""Sentences made up from patterns: what people ask for, with numbers, dates, questions, speech."""

import random
import re
from collections.abc import Iterator
from typing import Final

from training.sentences.amounts import AMOUNTS, Said
from training.sentences.patterns import PATTERNS
from training.sentences.words import WORDS

_SLOT: Final = re.compile(r"\{(\w+)\}")
_VOWELS: Final = "aeiou"
_A_BEFORE_A_VOWEL: Final = re.compile(rf"\b([Aa]) (?=[{_VOWELS}](?!ne?\b|ni|se|su))")
_START: Final = re.compile(r"(\"?)([a-z])")


def make(rng: random.Random) -> Said:
    """Return a sentence by a random pattern."""
    written: list[str] = []
    spoken: list[str] = []
    for number, part in enumerate(_SLOT.split(rng.choice(PATTERNS))):
        said = Said(part, part) if number % 2 == 0 else _fill(part, rng)
        written.append(said.written)
        spoken.append(said.spoken)
    return Said(_finished("".join(written)), _finished("".join(spoken)))


def made(seed: int) -> Iterator[Said]:
    """Yield different sentences without end."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        said = make(rng)
        if said.written not in seen:
            seen.add(said.written)
            yield said


def _fill(slot: str, rng: random.Random) -> Said:
    if slot in AMOUNTS:
        return AMOUNTS[slot](rng)
    word = rng.choice(WORDS[slot])
    return Said(word, word)


def _finished(text: str) -> str:
    """Put "an" where it belongs, and a capital where the sentence begins."""
    text = _A_BEFORE_A_VOWEL.sub(r"\1n ", text)
    start = _START.match(text)
    return start[1] + start[2].upper() + text[start.end() :] if start else text
