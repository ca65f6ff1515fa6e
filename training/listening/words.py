"""Word errors between a text and what was heard, whichever way either writes its numbers.

Numbers in words become digits, and digits that stand side by side one word: "ten thirty" is
"10:30", "nineteen eighty-four" is "1984".
"""

import re
from collections.abc import Iterator, Sequence
from typing import Final

_ONES: Final = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
]  # fmt: skip
_TENS: Final = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ORDINALS: Final = [
    "zeroth", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
    "tenth", "eleventh", "twelfth", *(f"{word}th" for word in _ONES[13:]),
]  # fmt: skip
_UNITS: Final = {word: value for value, word in enumerate(_ONES)} | {
    word: value for value, word in enumerate(_ORDINALS)
}
_BY_TEN: Final = {word: 10 * value for value, word in enumerate(_TENS, 2)} | {
    word[:-1] + "ieth": 10 * value for value, word in enumerate(_TENS, 2)
}
_SCALES: Final = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_MONEY: Final = {"$": ("dollars", "cents"), "£": ("pounds", "pence"), "€": ("euros", "cents")}
_SINGULAR: Final = {"dollar": "dollars", "cent": "cents", "pound": "pounds", "penny": "pence"}
_FRACTIONS: Final = {
    "1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter",
    "3/4": "three quarters", "1/5": "one fifth", "1/8": "one eighth", "1/10": "one tenth",
}  # fmt: skip
_ABBREVIATIONS: Final = {
    "dr": "doctor", "mr": "mister", "mrs": "missus", "prof": "professor", "etc": "et cetera",
    "ok": "okay",
}  # fmt: skip
_SPELLINGS: Final = (
    (re.compile(r"^(col|fav|hon|lab|neighb|harb|flav|hum|behavi|rum|arm|endeav|vig)our"), r"\1or"),
    (re.compile(r"^practis"), "practic"),
    (re.compile(r"(?<=[a-z]{2})is(e|ed|es|ing|ation|ations)$"), r"iz\1"),
    (re.compile(r"ll(ed|ing|er|ers)$"), r"l\1"),
    (re.compile(r"^(cent|theat|fib|lit|met)re(s?)$"), r"\1er\2"),
    (re.compile(r"^grey"), "gray"),
    (re.compile(r"^towards$"), "toward"),
)


def words(text: str) -> list[str]:
    """Return the words to compare, in lower case and one spelling."""
    text = re.sub(r"[’']", "", text.lower())
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    for sign, (whole, part) in _MONEY.items():
        text = re.sub(rf"\{sign}(\d+)\.(\d\d)\b", rf"\1 {whole} \2 {part} ", text)
        text = re.sub(rf"\{sign}(\d+)", rf"\1 {whole}", text)
    text = re.sub(r"(?<![\w.])-(?=\d)", "minus ", text)
    text = re.sub(r"(?<=\d)\.(?=\d)", " point ", text)
    text = re.sub(r"(?<=\d):00\b| oclock\b", "", text)
    for fraction, said in _FRACTIONS.items():
        text = re.sub(rf"(?<![\w/]){fraction}(?![\w/])", said, text)
    text = re.sub(r"\b(dollars?|pounds?|euros?) and ", r"\1 ", text)
    text = text.replace("%", " percent").replace("&", " and ").replace("°", " degrees ")
    text = text.replace("@", " at ").replace("+", " plus ").replace(" mph", " miles per hour")
    text = re.sub(r"\b([ap])\.? ?m\b\.?", r"\1m", text)
    parts: list[str] = re.findall(r"[a-z0-9]+", text)
    found = [_ABBREVIATIONS.get(part, part) for part in parts]
    found = [re.sub(r"^(\d+)(st|nd|rd|th|s)$", r"\1", word) for word in found]
    return [_spelling(word) for word in _with_digits(" ".join(found).split())]


def _spelling(word: str) -> str:
    for pattern, new in _SPELLINGS:
        word = pattern.sub(new, word)
    return _SINGULAR.get(word, word)


def _is_number(word: str) -> bool:
    return word.isdigit() or word in _UNITS or word in _BY_TEN or word in _SCALES


def _continues(hundreds: str, word: str) -> bool:
    """Whether both are one number, as in "1,500 and 98"."""
    is_round = hundreds.isdigit() and hundreds.endswith("00") and hundreds[0] != "0"
    return is_round and (len(word) < 3 if word.isdigit() else word not in _SCALES)


def _with_digits(found: Sequence[str]) -> Iterator[str]:
    """Put each run of number words as one string of digits; "and" behind a hundred goes."""
    run: list[str] = []
    for index, word in enumerate(found):
        follows = index + 1 < len(found) and _is_number(found[index + 1])
        if _is_number(word):
            run.append(word)
        elif run and follows and word in ("oh", "o"):
            run.append("zero")
        elif run and follows and word == "and" and run[-1] in _SCALES:
            pass
        elif run and follows and word == "and" and _continues(run[-1], found[index + 1]):
            run.append(word)
        else:
            yield from _digits(run)
            run = []
            yield word
    yield from _digits(run)


def _digits(run: Sequence[str]) -> Iterator[str]:
    """One word of all numbers in `run`: each takes what follows as long as it has room for it."""
    if not run:
        return
    written: list[str] = []
    total, current, room = 0, 0, 0  # below `room` a further number is part of this one
    is_open = False
    for word in run:
        if word == "and":
            room = 100
            continue
        if word in _SCALES:
            scale = _SCALES[word]
            if scale == 100:
                current = max(current, 1) * scale
            else:
                total, current = total + max(current, 1) * scale, 0
            room, is_open = scale, True
            continue
        value = int(word) if word.isdigit() else _UNITS.get(word, _BY_TEN.get(word, 0))
        if is_open and 0 < value < room:
            current += value
        else:
            if is_open:
                written.append(str(total + current))
            total, current, is_open = 0, value, True
            if word.isdigit() and word.startswith("0"):  # as it is, zeros in front and all
                written.append(word)
                is_open = False
        room = 10 if word in _BY_TEN else 0
    if is_open:
        written.append(str(total + current))
    yield "".join(written)


def errors(reference: Sequence[str], heard: Sequence[str]) -> int:
    """Return the edit distance in words, in which "wood smoke" equals "woodsmoke"."""
    before_last: list[int] = []
    last = list(range(len(heard) + 1))
    for i, word in enumerate(reference, 1):
        row = [i]
        for j, other in enumerate(heard, 1):
            best = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (word != other))
            if i > 1 and reference[i - 2] + word == other:
                best = min(best, before_last[j - 1])
            if j > 1 and heard[j - 2] + other == word:
                best = min(best, last[j - 2])
            row.append(best)
        before_last, last = last, row
    return last[-1]


def word_errors(text: str, transcript: str) -> tuple[int, int]:
    """Return errors and words of the text."""
    reference = words(text)
    return errors(reference, words(transcript)), len(reference)


def lacks_end(text: str, transcript: str) -> bool:
    """Whether the last word was not heard in any form, while something before it was."""
    reference, heard = words(text), words(transcript)
    if len(reference) < 2 or not heard:
        return False
    without = errors(reference[:-1], heard) + 1
    least = errors(reference, heard)
    replaced = errors(reference[:-1], heard[:-1]) + (reference[-1] != heard[-1])
    return without == least < min(replaced, len(reference))


def repeats(text: str, transcript: str, longest: int = 4) -> bool:
    """Whether up to `longest` words were heard twice in a row more often than they are written."""
    said, heard = (list(words(each)) for each in (text, transcript))

    def doubled(found: Sequence[str], size: int) -> int:
        places = range(len(found) - 2 * size + 1)
        return sum(found[i : i + size] == found[i + size : i + 2 * size] for i in places)

    return any(doubled(heard, size) > doubled(said, size) for size in range(1, longest + 1))
