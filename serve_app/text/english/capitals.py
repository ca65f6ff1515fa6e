"""Capitals of English text: what is shouted in small letters, what is spelled by letters' names."""

import re
from typing import Final

from serve_app.text.english.amounts import cardinal, ordinal


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NAMES: Final = _words(
    "ay bee see dee ee eff gee aitch eye jay kay ell em en oh pee cue ar ess tee you vee double-you"
    " ex why zee"
)
_LETTERS: Final = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", _NAMES, strict=True))
# Said as words, whatever their letters look like.
_SAID: Final = frozenset(
    _words(
        "NASA NATO UNESCO UNICEF LASER RADAR AIDS RAM ROM GIF JPEG PIN SIM OPEC FIFA UEFA IKEA LEGO"
        " SCUBA BIOS CUDA NUMA YAML JSON AJAX WASM"
    )
)
# Short words that somebody may stress; others of three letters and less are spelled.
_STRESSED: Final = frozenset(
    _words(
        "A I AM AN AND ANY ARE AS AT BAD BE BIG BUT BY CAN DAY DID DO END FAR FEW FOR GET GO"
        " GOT HAD HAS HE HER HIM HIS HOT HOW IF IN IS ITS LET LOT MAY ME MY NEW NO NOT NOW OF"
        " OFF OLD ON ONE OR OUR OUT OWN RED SAW SAY SEE SHE SO THE TO TOO TOP TRY TWO UP USE"
        " WAS WAY WE WHO WHY WIN YES YET YOU"
    )
)
_OTHERS: Final = {"OK": "okay", "TV": "tee vee"}
_CAPITALS: Final = re.compile(r"\b[A-Z]{2,}(?:'[A-Z]{1,2})?(?P<many>s)?(?!\w)")
_SHOUTED: Final = re.compile(r"\b[A-Z][A-Z']*\b(?:[^\w\n]+\b[A-Z][A-Z']*\b){2,}")
_SINGLE: Final = re.compile(r"(?<![\w'.])[B-HJ-Z](?![\w'.])")
_INITIALS: Final = re.compile(r"\b(?:[A-Z]\.){2,}")
_ROMAN: Final = re.compile(
    r"\b(?P<before>[A-Z][a-z]+|chapter|part|act|volume|book|section|type|phase|level) "
    r"(?P<numeral>(?=[IVX]{2}|[IVX]\b)X{0,3}(?:IX|IV|V?I{0,3}))\b(?!')"
)
_RULERS: Final = frozenset(
    _words(
        "Alexander Benedict Catherine Charles Edward Elizabeth Ferdinand Francis Frederick George"
        " Gregory Gustav Henry Innocent Ivan James John Leo Louis Mary Napoleon Nicholas Paul Peter"
        " Philip Pius Pope Ramses Richard Urban Victor Wilhelm William"
    )
)
_COUNTED: Final = frozenset(
    _words(
        "War Chapter Part Act Volume Book Section Type Phase Level Article Appendix Figure Class"
        " Mark Scene Title Stage Round Episode Season Table Unit Step Tier Grade"
    )
)
_VALUES: Final = {"I": 1, "V": 5, "X": 10}


def capitals_in_words(text: str) -> str:
    """`text` in which no word of two capitals and more is left."""
    text = _ROMAN.sub(_roman, text)
    if sum(map(str.isupper, text)) > 1:
        text = _SHOUTED.sub(_quiet, text)
        text = _INITIALS.sub(lambda found: _spelled(found[0].replace(".", "")), text)
        text = _CAPITALS.sub(_capitals, text)
    return _SINGLE.sub(lambda found: _LETTERS[found[0]], text)


def _roman(found: re.Match[str]) -> str:
    before, numeral = found["before"], found["numeral"]
    counts = before.capitalize() in _COUNTED
    # One letter is more often an initial, or a word.
    if not numeral or (
        len(numeral) == 1 and not (counts or (before in _RULERS and numeral != "I"))
    ):
        return found[0]
    values = [_VALUES[sign] for sign in numeral]
    number = sum(
        -value if value < following else value
        for value, following in zip(values, [*values[1:], 0], strict=True)
    )
    if before in _RULERS:
        return f"{before} the {ordinal(number)}"
    return f"{before} {cardinal(str(number))}"


def _quiet(found: re.Match[str]) -> str:
    """A run of at least three words in capitals, as it would be written without raising the voice.

    What no vowel is in, or is known to be spelled, stays to be.
    """
    words = re.split(r"([A-Z']+)", found[0])
    quiet = [
        word if word in _SAID or not set(word) & set("AEIOUY") else word.lower() for word in words
    ]
    # Three initialisms side by side are no shouting.
    if sum(len(word) > 3 or word in _STRESSED for word in words) * 2 < len(words) // 2:
        return found[0]
    said = "".join("I" if word == "i" else word for word in quiet)
    return said[:1].upper() + said[1:]


def _capitals(found: re.Match[str]) -> str:
    word, many = found[0], found["many"] or ""
    letters = word.removesuffix("s") if many else word
    if letters in _OTHERS:
        return _OTHERS[letters]
    if letters in _SAID:
        return letters.capitalize() + many
    bare, apostrophe, end = letters.partition("'")
    if bare in _STRESSED or (apostrophe and len(end) > 1):
        return letters.lower()
    has_vowel = bool(set(bare) & set("AEIOUY"))
    if len(bare) > 3 and has_vowel:
        return letters.lower() + many
    said = _spelled(bare) + many
    return f"{said}'{end.lower()}" if apostrophe else said


def _spelled(letters: str) -> str:
    return " ".join(_LETTERS[letter] for letter in letters)
