"""Text that comes in pieces, an LLM's tokens for instance, into units as soon as they are whole.

A sentence is given out when the next one has begun: whether a full stop ends one is seen from what
follows it. The first unit may be a clause, since its listener waits for it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from serve_app.text.languages import code_of_text
from serve_app.text.splitting import (
    CLAUSE_END,
    CLAUSE_PAUSE_S,
    PARAGRAPH_PAUSE_S,
    SENTENCE_PAUSE_S,
    Piece,
    estimated_frames,
    sentences,
)

Granularity = Literal["none", "sentence", "clause"]

# Marks that belong to what follows, although nothing has closed them yet.
_OPENED: Final = re.compile(r"\s[\"'“„«‘(\[]+\s*\Z")
_INITIAL: Final = re.compile(r"\b[^\W\d_]\.\s*\Z")
# Less is no clause worth a synthesis of its own: some two thirds of a second of speech.
_MIN_CLAUSE_FRAMES: Final = 8.0


@dataclass
class TextFeed:
    """Cuts the text of one stream; joined, the units are that text but for white space.

    A unit comes with the silence that belongs behind it where another one follows.

    Attributes:
        language: a checkpoint's name of it, or "auto".
        granularity: where to cut; "none" gives everything at the end.
        max_frames: the most codec frames of a unit, by estimate; a text that has no end by then
            is cut at the last white space.
        first_clause: the first unit may be a clause although the others are sentences.
    """

    language: str
    granularity: Granularity = "sentence"
    max_frames: float = 300.0
    first_clause: bool = True
    _text: str = ""
    _units: int = 0

    def feed(self, piece: str) -> list[Piece]:
        """Take the next piece of the text; the units that are whole now."""
        self._text += piece
        return list(self._whole()) if self.granularity != "none" else []

    def flush(self) -> list[Piece]:
        """What waits, as a unit, although the text goes on."""
        last, self._text = self._text.strip(), ""
        self._units += bool(last)
        return [Piece(last, SENTENCE_PAUSE_S)] if last else []

    def finish(self) -> list[Piece]:
        """The end of the text, and the beginning of another with the same settings."""
        last = self.flush()
        self._units = 0
        return last

    @property
    def num_waiting(self) -> int:
        """Characters that have not been given out."""
        return len(self._text)

    def _whole(self) -> Iterator[Piece]:
        while True:
            found = self._end()
            if found is None:
                return
            end, pause_s = found
            unit, self._text = self._text[:end].strip(), self._text[end:]
            if unit:
                self._units += 1
                yield Piece(unit, pause_s)

    def _end(self) -> tuple[int, float] | None:
        """Where the first unit of the waiting text ends and the silence that belongs behind it, or
        None while that is open.
        """
        code = code_of_text(self.language, self._text)
        line = self._text.lstrip()
        skipped = len(self._text) - len(line)
        line, has_break, _ = line.partition("\n")
        sentence = next(sentences(line, code))
        rest = line[len(sentence) :]
        pause_s = SENTENCE_PAUSE_S if rest.strip() else PARAGRAPH_PAUSE_S
        opened = _OPENED.search(sentence)
        if opened is not None:
            sentence = sentence[: opened.start()]
        # Behind an initial ("J. R. R. To...") only a whole word tells a name from a sentence.
        is_whole = bool(has_break) or bool(rest.strip() and not _INITIAL.search(sentence))
        is_whole |= " " in rest.lstrip()
        clauses = self.granularity == "clause" or (self.first_clause and not self._units)
        if clauses:
            clause = _clause(sentence, is_whole)
            if clause is not None:
                return skipped + clause, CLAUSE_PAUSE_S
        if is_whole and estimated_frames(sentence) <= self.max_frames:
            return skipped + len(sentence), pause_s
        forced = self._forced(sentence)
        return None if forced is None else (skipped + forced, 0.0)

    def _forced(self, sentence: str) -> int | None:
        """The end of a unit of a sentence that is too long, None while it is not."""
        if estimated_frames(sentence) <= self.max_frames:
            return None
        low, high = 1, len(sentence)
        while low < high:  # the longest beginning that fits
            middle = (low + high + 1) // 2
            fits = estimated_frames(sentence[:middle]) <= self.max_frames
            low, high = (middle, high) if fits else (low, middle - 1)
        space = max(sentence.rfind(white, 0, low) for white in " \t")
        return space if space > 0 else low


def _clause(sentence: str, is_whole: bool) -> int | None:
    """The end of the first clause of a sentence that is long enough and not all of it."""
    for found in CLAUSE_END.finditer(sentence):
        end = found.end()
        if estimated_frames(sentence[:end]) < _MIN_CLAUSE_FRAMES:
            continue
        # A quotation mark may still close what the clause holds.
        return end if end < len(sentence) or is_whole else None
    return None
