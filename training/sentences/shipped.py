"""Sentences from texts with clear rights: WordNet's examples and definitions, and plain prose.

WordNet is the folder of its `data.*` files (Debian: wordnet-base). Prose is a text file, perhaps
compressed, such as The Devil's Dictionary (public domain) or the Jargon File.
"""

import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LEAST_WORDS: Final = 3
_MOST_CHARS: Final = 220
_QUOTED: Final = re.compile(r'"([^"]{8,})"')
_REMARK: Final = re.compile(r"\([^)]*\)")
_DEFINITION: Final = re.compile(r"(?:an?|the|one|some|someone|any|anything|something)\s")
# Definitions of these are lists of names that nobody says.
_DRY: Final = re.compile(r"\b(?:genus|genera|species|family|families|order|phylum|suborder)\b")
_UNFIT: Final = re.compile(
    r"sexual|genital|obscene|vulgar|offensive|disparag|derogat|slur|coitus|prostitut|excre|penis|"
    r"vagina|anus|fuck|shit|rape|nazi|negro|whore|suicide",
    re.IGNORECASE,
)
# Read out as they are written: letters and the marks that the teacher knows.
_READABLE: Final = re.compile(r"[A-Za-z][A-Za-z ,;:.!?'\"-]*")
_SHORTENED: Final = re.compile(r"\b(?:etc|e\.g|i\.e|cf|vs|esp|usu|approx)\b|\b[A-Z]\.|[A-Z]{2,}")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PARAGRAPH_END: Final = re.compile(r"\n\s*\n")


def wordnet(folder: Path) -> Iterator[str]:
    """Yield examples, and definitions of nouns as "A canoe is a small and light boat."."""
    for file in sorted(folder.glob("data.*")):
        for line in file.read_text(encoding="latin-1").splitlines():
            entry, bar, gloss = line.partition(" | ")
            if not bar or line.startswith("  ") or _UNFIT.search(line):
                continue
            for example in _QUOTED.findall(gloss):
                yield from _fit(example)
            if file.name == "data.noun":
                yield from _definition(entry.split()[4], gloss)


def _definition(word: str, gloss: str) -> Iterator[str]:
    meaning = _REMARK.sub("", gloss.split(";")[0].split('"')[0]).strip()
    if not _DEFINITION.match(meaning) or _DRY.search(meaning) or word != word.lower():
        return
    noun = word.replace("_", " ")
    yield from _fit(f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} is {meaning}")


def prose(file: Path) -> Iterator[str]:
    """Yield the sentences of running text; tables, verse and listings are left out."""
    data = file.read_bytes()
    packed = data[:2] == b"\x1f\x8b"
    text = (gzip.decompress(data) if packed else data).decode("utf-8", "replace")
    for paragraph in _PARAGRAPH_END.split(text):
        lines = [line.strip() for line in paragraph.splitlines()]
        for sentence in _SENTENCE_END.split(" ".join(lines)):
            if sentence[-1:] in (".", "!", "?") and not _UNFIT.search(sentence):
                yield from _fit(sentence)


def _fit(sentence: str) -> Iterator[str]:
    """The sentence with capital and full stop, if it reads as it is written."""
    text = " ".join(sentence.replace("`", "'").split()).strip(" ;,-")
    fits = (
        len(text.split()) >= _LEAST_WORDS
        and len(text) <= _MOST_CHARS
        and text.count('"') % 2 == 0
        and _READABLE.fullmatch(text)
        and not _SHORTENED.search(text.replace("I ", "").replace("A ", ""))
    )
    if fits:
        text = text[0].upper() + text[1:]
        yield text if text[-1] in ".!?" else f"{text}."
