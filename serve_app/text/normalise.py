"""Text as people and language models write it, as text to read out.

`clean` is for every text: it changes nothing that is spoken. What changes the words is done only
where a request asks for it, since the model reads digits and addresses itself.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

import emoji
from markdown_it import MarkdownIt
from markdown_it.token import Token
from num2words import num2words

_LINE_BREAKS: Final = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SPACES: Final = re.compile(r"[^\S\n]+")
_EMPTY_LINES: Final = re.compile(r" ?\n ?(?:\n ?)+")
_SPACED_BREAK: Final = re.compile(r" ?\n ?")
# Marks on one letter, as many as Unicode's stream-safe text has; no script needs more than a few.
# The time to normalise text grows with the square of a run of them.
_MAX_MARKS: Final = 30
# Joiners form emoji and, in other scripts, letters; every other format character is invisible.
_JOINERS: Final = "\u200c\u200d"
_KEPT: Final = frozenset(f"\n\t{_JOINERS}")


@dataclass(frozen=True, slots=True)
class Normalisation:
    """What of a text is to be rewritten.

    Attributes:
        markdown: read Markdown as what it shows; code blocks are left out.
        emoji: leave emoji out.
        words: write numbers, percentages and addresses as words.
        plain: write English as `plain_english` does, which does more than `words`; and say the
            name of an emoji, or what a code block holds, where there is nothing else to say.
    """

    markdown: bool = False
    emoji: bool = False
    words: bool = False
    plain: bool = False


def clean(text: str) -> str:
    """NFC without control and invisible characters, and with single spaces and line breaks.

    An empty line, the mark of a paragraph, stays one. Of a heap of marks on one letter, only as
    many stay as a letter can have.
    """
    text = _LINE_BREAKS.sub("\n", unicodedata.normalize("NFC", _without_heaps(text)))
    if not text.isascii() or not text.isprintable():
        text = "".join(
            char for char in text if char in _KEPT or unicodedata.category(char) not in ("Cc", "Cf")
        )
    text = _SPACES.sub(" ", text)
    text = _EMPTY_LINES.sub("\n\n", text)
    # One line break stays one; `_EMPTY_LINES` has left two only where a paragraph ends.
    return _SPACED_BREAK.sub("\n", text).strip(f" \n{_JOINERS}")


def _without_heaps(text: str) -> str:
    if text.isascii():
        return text
    kept: list[str] = []
    marks = 0
    for char in text:
        marks = marks + 1 if unicodedata.combining(char) else 0
        if marks <= _MAX_MARKS:
            kept.append(char)
    return "".join(kept)


# `emoji` takes time that grows with the square of a run of joined characters. What a cut through
# one may leave over is not visible.
_BLOCK_CHARS: Final = 256
_PARTS_OF_EMOJI: Final = re.compile("[\ufe0e\ufe0f\u20e3\u200d\U0001f3fb-\U0001f3ff]")


def without_emoji(text: str) -> str:
    if text.isascii():
        return text
    blocks = (text[i : i + _BLOCK_CHARS] for i in range(0, len(text), _BLOCK_CHARS))
    kept = "".join(emoji.replace_emoji(block, " ") for block in blocks)
    return _PARTS_OF_EMOJI.sub("", kept)


def named_emoji(text: str) -> str:
    """`text` with the English names of emoji in their places."""
    blocks = (text[i : i + _BLOCK_CHARS] for i in range(0, len(text), _BLOCK_CHARS))
    return "".join(
        emoji.replace_emoji(block, lambda _, data: f" {data['en'].strip(':').replace('_', ' ')} ")
        for block in blocks
    )


# To most who write, text that is set in, or behind a name in brackets, is text.
_MARKDOWN: Final = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["table", "strikethrough"])
    .disable(["code", "reference"])
)
_MAX_BRACKETS: Final = 2000
_ENDS_OF_LINES: Final = {"paragraph_close", "heading_close", "tr_close", "hr"}


def without_markdown(text: str) -> str:
    """What Markdown shows, a block to a line; code blocks are left out, inline code is read.

    A text with more brackets than anyone writes is left as it is: their search is quadratic.
    """
    if text.count("[") > _MAX_BRACKETS:
        return text
    parts: list[str] = []
    for token in _MARKDOWN.parse(text):
        if token.type == "inline":
            parts.append(_shown(token))
        elif token.type == "list_item_open" and token.info:
            parts.append(f"{token.info}. ")
        elif token.type in ("th_open", "td_open") and parts and not parts[-1].endswith("\n"):
            parts.append(", ")
        elif token.type in _ENDS_OF_LINES:
            # In a list that is written without empty lines, items stand below each other.
            parts.append("\n" if token.hidden or token.type == "tr_close" else "\n\n")
    return "".join(parts).strip()


def _shown(token: Token) -> str:
    """The text of an inline token; an image is what its description says, a link its text."""
    if token.children is None:
        return token.content
    return "".join(
        "\n" if child.type in ("softbreak", "hardbreak") else _shown(child)
        for child in token.children
    )


# The most digits that are read as a number; more are a code, digit by digit.
_MAX_DIGITS: Final = 15
_NUMBER: Final = r"\d{1,3}(?:[.,\u00a0\u202f]\d{3})+(?:[.,]\d+)?|\d+(?:[.,]\d+)?"
# Not what belongs to a name, a date, a time or an amount of money.
_AMOUNT: Final = re.compile(
    rf"(?<![A-Za-z0-9_.,:/$€£¥-])(?P<sign>[-−])?(?!0\d)(?P<number>{_NUMBER})"
    r"(?P<unit>(?:st|nd|rd|th)\b| ?%)?(?![A-Za-z0-9_%/-]| ?[€£$¥]|[.,:]\d)"
)
_ADDRESS: Final = re.compile(
    r"(?:https?://|www\.)(?P<url>[^\s<>\"]{1,500})|(?P<mail>[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+)"
)
_TRAILING: Final = ".,;:!?)]}'"
# How an address is read: the full stop, the slash, the at sign, the hyphen; then the percent sign.
_SIGNS: Final[Mapping[str, tuple[str, str, str, str, str]]] = {
    "zh": ("点", "斜杠", "艾特", "杠", "百分号"),
    "en": ("dot", "slash", "at", "dash", "percent"),
    "ja": ("ドット", "スラッシュ", "アットマーク", "ハイフン", "パーセント"),
    "ko": ("점", "슬래시", "골뱅이", "하이픈", "퍼센트"),
    "de": ("Punkt", "Schrägstrich", "ät", "Bindestrich", "Prozent"),
    "fr": ("point", "barre oblique", "arobase", "tiret", "pour cent"),
    "ru": ("точка", "косая черта", "собака", "дефис", "процентов"),
    "pt": ("ponto", "barra", "arroba", "hífen", "por cento"),
    "es": ("punto", "barra", "arroba", "guion", "por ciento"),
    "it": ("punto", "barra", "chiocciola", "trattino", "per cento"),
}
_DECIMAL_POINT: Final = frozenset(("en", "zh", "ja", "ko"))


def in_words(text: str, code: str) -> str:
    """`text` with addresses, numbers and percentages in words.

    Where `num2words` does not know the language (Chinese), digits stay digits.
    """
    text = addresses_in_words(text, code)
    return _AMOUNT.sub(lambda found: _amount(found, code), text)


def addresses_in_words(text: str, code: str) -> str:
    return _ADDRESS.sub(lambda found: _address(found, code), text)


def _address(found: re.Match[str], code: str) -> str:
    dot, slash, at, dash, _ = _SIGNS[code]
    whole = found["url"] or found["mail"]
    address = whole.rstrip(_TRAILING)
    words = re.split(r"([./@-])", address.rstrip("/").removeprefix("www."))
    named = {".": dot, "/": slash, "@": at, "-": dash}
    return " ".join(named.get(word, word) for word in words if word) + whole[len(address) :]


def _amount(found: re.Match[str], code: str) -> str:
    unit = (found["unit"] or "").strip()
    try:
        number = _number(found["number"], code)
        if found["sign"]:
            number = -number
        if unit not in ("", "%"):
            return spoken_number(number, "en", "ordinal") if code == "en" else found[0]
        spoken = spoken_number(number, code)
    except ValueError:
        return found[0]
    return f"{spoken} {_SIGNS[code][4]}" if unit == "%" else spoken


def _number(digits: str, code: str) -> Decimal:
    """The value of digits with separators, by the habits of the language where it is open.

    Raises:
        ValueError: separators of several kinds stand where no language has them.
    """
    point = "." if code in _DECIMAL_POINT else ","
    other = "," if point == "." else "."
    plain = re.sub("[\u00a0\u202f]", "", digits)
    grouped = re.fullmatch(
        rf"\d{{1,3}}(?:{re.escape(other)}\d{{3}})+(?:{re.escape(point)}\d+)?", plain
    )
    if grouped:
        plain = plain.replace(other, "")
    # What remains is one separator, the decimal one whatever the language prefers, or several
    # of the language's own, which can only be groups.
    if plain.count(point) > 1:
        plain = plain.replace(point, "")
    try:
        return Decimal(plain.replace(",", "."))
    except InvalidOperation as error:
        raise ValueError(f"{digits!r} is no number") from error


def spoken_number(number: Decimal, code: str, to: str = "cardinal") -> str:
    """`number` in words.

    Raises:
        ValueError: it cannot be said in this language, or is too large or too small to be said.
    """
    # "1e999999999" has one digit, and Python would write out all of the others.
    is_sayable = number.is_finite() and (not number or abs(number.adjusted()) < _MAX_DIGITS)
    if not is_sayable or len(number.as_tuple().digits) > _MAX_DIGITS:
        raise ValueError(f"{number} has more than {_MAX_DIGITS} digits")
    exact = int(number) if number == number.to_integral_value() else number
    try:
        spoken = _WORDS(exact, lang=code, to=to)
    except (NotImplementedError, OverflowError, TypeError, LookupError, RecursionError) as error:
        raise ValueError(f"{number} in '{code}': {error}") from error
    return spoken.replace("-", " ") if code == "en" else spoken


_WORDS: Final[Callable[..., str]] = num2words
