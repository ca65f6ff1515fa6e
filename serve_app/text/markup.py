"""Tags in a text: `[pause 0.5s]`, and the part of SSML that a voice can follow.

`break`, `prosody rate`, `say-as`, `sub`, `p` and `s` are followed, whether or not `<speak>` is
around them. Of every other element of SSML the tag is left out and what it holds is spoken; what
it only says about a document is not. A tag that is none of SSML's is text, as is a stray `<`.
"""

import html
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Final

from serve_app.text.normalise import spoken_number

# The longest pause, and all pauses of a text together.
MAX_PAUSE_S: Final = 10.0
MAX_PAUSES_S: Final = 300.0
_DEFAULT_PAUSE_S: Final = 0.5
MIN_RATE: Final = 0.25
MAX_RATE: Final = 4.0
# Elements within each other; what lies deeper has no effect.
_MAX_DEPTH: Final = 16
_BRACKETED: Final = (
    r"\[\s*(?:pause|break|silence)(?:[\s:=]+(?P<length>\d{1,6}(?:\.\d{1,6})?)\s*"
    r"(?P<unit>ms|s|sec|secs|seconds?|milliseconds?)?)?\s*\]"
)
_ELEMENTS: Final = (
    "speak|break|prosody|say-as|sub|p|s|emphasis|voice|lang|phoneme|audio|mark|w|token"
    "|desc|metadata|meta|lexicon|lookup"
)
_TAGGED: Final = (
    rf"<(?P<end>/)?(?P<name>(?:{_ELEMENTS}))(?P<attributes>(?:\s[^<>]{{0,1000}})?)/?>"
    r"|<\?xml[^<>]{0,200}>|<!--[^<>]{0,1000}-->"
)
_TAG: Final = re.compile(f"{_BRACKETED}|{_TAGGED}", re.IGNORECASE | re.DOTALL)
_ATTRIBUTE: Final = re.compile(r"(?<![\w:-])([\w:-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)')")
_TIME: Final = re.compile(r"\+?(\d{1,6}(?:\.\d{1,6})?)(ms|s)")
_STRENGTHS_S: Final = {
    "none": 0.0,
    "x-weak": 0.0,
    "weak": 0.15,
    "medium": 0.35,
    "strong": 0.6,
    "x-strong": 1.0,
}
_RATES: Final = {
    "x-slow": 0.5,
    "slow": 0.75,
    "medium": 1.0,
    "default": 1.0,
    "fast": 1.25,
    "x-fast": 1.6,
}
_LINE_BREAKS: Final = {"p": "\n\n", "s": "\n"}
_SILENT: Final = frozenset(("desc", "metadata", "lexicon", "lookup"))
_DIGITS: Final = re.compile(r"\d")


@dataclass(frozen=True, slots=True)
class Passage:
    """Text that is read at one rate; 1 is the model's own."""

    text: str
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


def read_markup(text: str, code: str) -> list[Passage | Pause]:
    """The passages and pauses of `text` in order; `code` is its ISO 639-1 code."""
    reader = _Reader(code)
    position = 0
    tags = list(_TAG.finditer(text))
    # Only in XML are `&amp;` and the like other than they look.
    unescaped = html.unescape if any(found["name"] for found in tags) else str
    for found in tags:
        reader.text(unescaped(text[position : found.start()]))
        reader.tag(found)
        position = found.end()
    reader.text(unescaped(text[position:]))
    reader.end_passage()
    return reader.parts


@dataclass(slots=True)
class _Opened:
    """An element that is open, and what it does to the text within."""

    name: str
    change: Callable[[str], str] | None
    rate: float


@dataclass
class _Reader:
    """What is read so far, and the elements that are open."""

    code: str
    parts: list[Passage | Pause] = field(default_factory=list)
    _texts: list[str] = field(default_factory=list)
    _rate: float = 1.0
    _opened: list[_Opened] = field(default_factory=list)
    _pauses_s: float = 0.0

    def text(self, text: str) -> None:
        rate = 1.0
        for element in reversed(self._opened):
            rate *= element.rate
            if element.change is not None:
                text = element.change(text)
        rate = min(max(rate, MIN_RATE), MAX_RATE)
        if rate != self._rate:
            self.end_passage()
            self._rate = rate
        self._texts.append(text)

    def end_passage(self) -> None:
        text = "".join(self._texts)
        self._texts.clear()
        if text:
            self.parts.append(Passage(text, self._rate))

    def tag(self, found: re.Match[str]) -> None:
        name = (found["name"] or "").lower()
        if found[0].startswith("["):
            length = float(found["length"] or _DEFAULT_PAUSE_S)
            self._pause(length / 1000 if (found["unit"] or "").lower()[:1] == "m" else length)
        elif found["end"]:
            self._close(name)
        elif name:
            pairs = _ATTRIBUTE.findall(found["attributes"] or "")
            values = {key.lower(): html.unescape(a or b) for key, a, b in pairs}
            self._open(name, values, found[0].endswith("/>"))

    def _open(self, name: str, attributes: dict[str, str], is_empty: bool) -> None:
        change: Callable[[str], str] | None = None
        rate = 1.0
        match name:
            case "break":
                self._pause(_break_s(attributes))
            case "p" | "s":
                self.text(_LINE_BREAKS[name])
            case "say-as":
                change = _say_as(attributes.get("interpret-as", "").lower(), self.code)
            case "sub" if "alias" in attributes:
                # Spoken instead of what the element holds.
                self.text(attributes["alias"])
                change = _nothing
            case "prosody":
                rate = _rate(attributes.get("rate", ""))
            case _ if name in _SILENT:
                change = _nothing
        has_effect = change is not None or rate != 1
        if has_effect and not is_empty and len(self._opened) < _MAX_DEPTH:
            self._opened.append(_Opened(name, change, rate))

    def _close(self, name: str) -> None:
        for position in reversed(range(len(self._opened))):
            if self._opened[position].name == name:
                del self._opened[position:]
                break
        if name in _LINE_BREAKS:
            self.text(_LINE_BREAKS[name])

    def _pause(self, seconds: float) -> None:
        seconds = min(seconds, MAX_PAUSE_S, MAX_PAUSES_S - self._pauses_s)
        if seconds > 0:
            self._pauses_s += seconds
            self.end_passage()
            self.parts.append(Pause(seconds))


def _break_s(attributes: dict[str, str]) -> float:
    found = _TIME.fullmatch(attributes.get("time", "").strip().lower())
    if found is None:
        return _STRENGTHS_S.get(attributes.get("strength", "medium"), _STRENGTHS_S["medium"])
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


def _rate(value: str) -> float:
    """The factor of `prosody rate`: a word, "120%", "+20%", "-10%" or "1.2"; 1 where unclear."""
    value = value.strip().lower()
    if value in _RATES:
        return _RATES[value]
    try:
        if not value.endswith("%"):
            factor = float(Decimal(value))
        else:
            factor = float(Decimal(value[:-1])) / 100 + (1 if value[0] in "+-" else 0)
    except (InvalidOperation, ValueError):
        return 1.0
    return min(max(factor, MIN_RATE), MAX_RATE) if factor == factor else 1.0


def _nothing(_: str) -> str:
    return ""


def _say_as(kind: str, code: str) -> Callable[[str], str] | None:
    match kind:
        case "characters" | "spell-out" | "verbatim" | "letters":
            return lambda text: " ".join(text.replace(" ", ""))
        case "digits" | "telephone":
            return lambda text: _DIGITS.sub(r"\g<0> ", text).strip()
        case "cardinal" | "number" | "ordinal":
            form = "ordinal" if kind == "ordinal" else "cardinal"
            return lambda text: _counted(text, code, form)
        case _:
            return None


def _counted(text: str, code: str, form: str) -> str:
    try:
        return spoken_number(Decimal(text.strip()), code, form)
    except (ValueError, InvalidOperation):
        return text
