"""Long text into units that are synthesized one after the other.

A text that one generation can hold stays whole: a voice is steadiest within one. What is longer is
cut where a reader would pause: between paragraphs, sentences, clauses, words. No character but
white space is lost. The work is linear in the length of the text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import sentencex

# What follows a unit, in seconds of silence, by where the text was cut. The audio of a unit ends
# with some silence of its own.
PARAGRAPH_PAUSE_S: Final = 0.35
SENTENCE_PAUSE_S: Final = 0.15
CLAUSE_PAUSE_S: Final = 0.05
# Codec frames of a character read at a usual pace, rounded up: one syllable of Chinese, Japanese or
# Korean; a digit, which is a word; any other letter.
_SYLLABLE_FRAMES: Final = 3.0
_DIGIT_FRAMES: Final = 4.0
_LETTER_FRAMES: Final = 1.0
_SYLLABLES: Final = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_DIGITS: Final = re.compile(r"\d")
# `sentencex` takes time that grows with the square of what it is given.
_BLOCK_CHARS: Final = 2000
# The marks of other scripts need no space behind them.
CLAUSE_END: Final = re.compile(r"[,;:](?=\s)|[，；：、،؛—–]")
# A compiled module without stubs.
_segment: Final[Callable[[str, str], list[str]]] = vars(sentencex)["segment"]
_WORD: Final = re.compile(r"\S+\s*|\s+")


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a text and the silence that belongs behind it."""

    text: str
    pause_s: float

    @property
    def frames(self) -> float:
        return estimated_frames(self.text)


def estimated_frames(text: str) -> float:
    """How many codec frames (80 ms) the speech of `text` takes, rather too many than too few."""
    syllables = len(_SYLLABLES.findall(text))
    digits = len(_DIGITS.findall(text))
    letters = len(text) - syllables - digits
    return syllables * _SYLLABLE_FRAMES + digits * _DIGIT_FRAMES + letters * _LETTER_FRAMES


def units(text: str, code: str, max_frames: float) -> list[Piece]:
    """Cut `text` into pieces of about `max_frames` frames at most; `code` is ISO 639-1.

    The last piece has no pause.
    """
    if estimated_frames(text) <= max_frames:
        return [Piece(text, 0.0)]
    parts = [part for piece in _sentences(text, code) for part in _fitting(piece, max_frames)]
    found = [
        Piece(stripped, piece.pause_s)
        for piece in _packed(parts, max_frames)
        if (stripped := piece.text.strip())
    ]
    return [*found[:-1], Piece(found[-1].text, 0.0)] if found else []


def sentences(paragraph: str, code: str) -> Iterator[str]:
    """The sentences of a line, at least one; together they are that line again."""
    rest = ""
    for start in range(0, len(paragraph), _BLOCK_CHARS):
        rest += paragraph[start : start + _BLOCK_CHARS]
        *whole, last = _segment(code, rest)
        yield from whole
        # The last one may go on in the next block, unless it is as long as one.
        rest = last
        if len(rest) > _BLOCK_CHARS:
            yield rest
            rest = ""
    if rest or not paragraph:
        yield rest


def _sentences(text: str, code: str) -> Iterator[Piece]:
    for line in text.splitlines(keepends=True):
        *before, last = sentences(line, code)
        for sentence in before:
            yield Piece(sentence, SENTENCE_PAUSE_S)
        yield Piece(last, PARAGRAPH_PAUSE_S)


def _fitting(piece: Piece, max_frames: float) -> Iterator[Piece]:
    """`piece`, or the clauses or words of one that is too long."""
    if piece.frames <= max_frames:
        yield piece
        return
    ends = [found.end() for found in CLAUSE_END.finditer(piece.text)]
    clauses = [
        part
        for start, end in zip([0, *ends], [*ends, len(piece.text)], strict=True)
        for part in _short(Piece(piece.text[start:end], CLAUSE_PAUSE_S), max_frames)
    ]
    *before, last = _packed(clauses, max_frames)
    yield from before
    yield Piece(last.text, piece.pause_s)


def _short(piece: Piece, max_frames: float) -> Iterator[Piece]:
    """`piece`, cut at white space, or anywhere in what has none, where it is still too long."""
    if piece.frames <= max_frames:
        yield piece
        return
    # Short enough whatever the characters are.
    step = max(1, int(max_frames / _DIGIT_FRAMES))
    words = [
        Piece(word[start : start + step], 0.0)
        for word in _WORD.findall(piece.text)
        for start in range(0, len(word), step)
    ]
    *before, last = _packed(words, max_frames)
    yield from before
    yield Piece(last.text, piece.pause_s)


def _packed(pieces: Sequence[Piece], max_frames: float) -> Iterator[Piece]:
    """Neighbours joined while they fit together."""
    texts: list[str] = []
    frames, pause_s = 0.0, 0.0
    for piece in pieces:
        size = piece.frames
        if texts and frames + size > max_frames:
            yield Piece("".join(texts), pause_s)
            texts, frames = [], 0.0
        texts.append(piece.text)
        frames, pause_s = frames + size, piece.pause_s
    if texts:
        yield Piece("".join(texts), pause_s)
