"""Amounts of English text in words: numbers, money, dates, times, measures, telephones."""

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Final

from serve_app.text.normalise import spoken_number

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September"),
    *("October", "November", "December"),
)
_MONTH: Final = r"(?P<month>" + "|".join(f"{name[:3]}(?:{name[3:]})?" for name in _MONTHS) + ")"
# Sign, one, several, a hundredth, hundredths.
_MONEY: Final = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "€": ("euro", "euros", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "¥": ("yen", "yen", "", ""),
}
_SCALES: Final = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "bn": "billion",
    "B": "billion", "b": "billion", "tn": "trillion", "T": "trillion",
}  # fmt: skip
_UNITS: Final = {
    "kg": "kilogram", "g": "gram", "mg": "milligram", "lb": "pound", "lbs": "pound", "oz": "ounce",
    "km": "kilometer", "m": "meter", "cm": "centimeter", "mm": "millimeter", "mi": "mile",
    "ft": "foot", "L": "liter", "l": "liter", "ml": "milliliter", "mL": "milliliter",
    "ms": "millisecond", "s": "second", "sec": "second", "min": "minute", "h": "hour",
    "hr": "hour", "hrs": "hour", "kHz": "kilohertz", "Hz": "hertz", "MHz": "megahertz",
    "GHz": "gigahertz", "W": "watt", "kW": "kilowatt", "kWh": "kilowatt hour", "V": "volt",
    "KB": "kilobyte", "kB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte",
    "MiB": "mebibyte", "GiB": "gibibyte", "km/h": "kilometer per hour", "mph": "mile per hour",
    "m/s": "meter per second", "°C": "degree Celsius", "°F": "degree Fahrenheit", "°": "degree",
    "%": "percent", "px": "pixel", "μm": "micrometer", "μg": "microgram", "μs": "microsecond",
}  # fmt: skip
_SAME_FOR_SEVERAL: Final = frozenset(("percent", "hertz", "kilohertz", "megahertz", "gigahertz"))
_NUMBER: Final = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_DIGIT_WORDS: Final = (
    *("zero", "one", "two", "three", "four"),
    *("five", "six", "seven", "eight", "nine"),
)
_FRACTIONS: Final = {
    "1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter",
    "3/4": "three quarters", "1/5": "one fifth", "1/8": "one eighth", "1/10": "one tenth",
}  # fmt: skip
_LONGEST_CARDINAL: Final = 12
_YEARS: Final = range(1100, 2100)


def cardinal(digits: str) -> str:
    """`digits`, which may have commas and a decimal point, as one number."""
    whole, _, part = digits.replace(",", "").partition(".")
    if len(whole) > _LONGEST_CARDINAL or (len(whole) > 1 and whole.startswith("0")):
        said = one_by_one(whole)
    else:
        said = spoken_number(Decimal(whole), "en").replace(",", "")
    return f"{said} point {one_by_one(part)}" if part else said


def ordinal(number: int) -> str:
    return spoken_number(Decimal(number), "en", "ordinal").replace(",", "")


def one_by_one(digits: str) -> str:
    return " ".join(_DIGIT_WORDS[int(digit)] for digit in digits)


def year(number: int) -> str:
    century, rest = divmod(number, 100)
    if number % 1000 < 10:
        return cardinal(str(number))
    if rest == 0:
        return f"{cardinal(str(century))} hundred"
    return f"{cardinal(str(century))} {'oh ' if rest < 10 else ''}{cardinal(str(rest))}"


def _plain(digits: str) -> str:
    """A number by itself: four digits of our time are read as a year is."""
    if len(digits) == 4 and digits.isdigit() and int(digits) in _YEARS:
        return year(int(digits))
    return cardinal(digits)


def _several(word: str) -> str:
    if word in _SAME_FOR_SEVERAL:
        return word
    if word == "foot":
        return "feet"
    first, space, rest = word.partition(" ")
    if rest.startswith("hour"):
        return f"{word}s"
    return f"{first}s{space}{rest}"


def _decade(found: re.Match[str]) -> str:
    digits = found["digits"]
    said = year(int(digits)) if len(digits) == 4 else cardinal(digits)
    return f"{said[:-1]}ies" if said.endswith("y") else f"{said}s"


def _day(month: str, day: str, of: str | None) -> str:
    name = next(name for name in _MONTHS if name.startswith(month[:3].capitalize()))
    return f"{name} {ordinal(int(day))}" + (f", {year(int(of))}" if of else "")


def _iso(found: re.Match[str]) -> str:
    month, day = int(found["month"]), int(found["day"])
    if not (0 < month <= len(_MONTHS) and 0 < day <= 31 and int(found["year"]) in _YEARS):
        return found[0]
    return _day(_MONTHS[month - 1], found["day"], found["year"])


def _day_of(found: re.Match[str]) -> str:
    if not 0 < int(found["day"]) <= 31:
        return found[0]
    of = found["year"] if found["year"] and int(found["year"]) in _YEARS else None
    rest = f", {cardinal(found['year'])}" if found["year"] and not of else ""
    return _day(found["month"], found["day"], of) + rest


def _day_before_month(found: re.Match[str]) -> str:
    if not 0 < int(found["day"]) <= 31:
        return found[0]
    name, _, rest = _day_of(found).partition(" ")
    day, comma, of = rest.partition(",")
    return f"{found['the'] or 'the '}{day} of {name}{comma}{of}"


def _time(found: re.Match[str]) -> str:
    hour, minute, half = int(found["hour"]), int(found["minute"] or 0), found["half"]
    if hour > 24 or minute > 59:
        return found[0]
    said = cardinal(str(hour))
    if minute:
        said += f" {'oh ' if minute < 10 else ''}{cardinal(str(minute))}"
    elif not half:
        said += " o'clock"
    return f"{said} {half[0].lower()}.m." if half else said


def _money(found: re.Match[str]) -> str:
    one, many, cent, cents = _MONEY[found["sign"]]
    scale = found["scale"]
    whole, _, part = found["number"].replace(",", "").partition(".")
    if scale:
        return f"{cardinal(found['number'])} {_SCALES.get(scale, scale)} {many}"
    if len(part) not in (0, 2) or (part and not cent):
        return f"{cardinal(found['number'])} {many}"
    said = f"{cardinal(whole)} {one if whole == '1' else many}"
    if not int(part or 0):
        return said
    small = f"{cardinal(str(int(part)))} {cent if part == '01' else cents}"
    return small if whole == "0" else f"{said} and {small}"


def _measure(found: re.Match[str]) -> str:
    word = _UNITS[found["unit"]]
    unit = word if found["number"] == "1" else _several(word)
    return f"{'minus ' if found['sign'] else ''}{cardinal(found['number'])} {unit}"


def _telephone(found: re.Match[str]) -> str:
    groups = re.findall(r"\d+", found[0])
    plus = "plus " if found[0].startswith("+") else ""
    return plus + ", ".join(one_by_one(group) for group in groups)


def _range(found: re.Match[str]) -> str:
    return f"{_plain(found['low'])} to {_plain(found['high'])}"


def _number(found: re.Match[str]) -> str:
    sign = "minus " if found["sign"] else ""
    if found["end"]:
        return sign + ordinal(int(found["number"].replace(",", "")))
    return sign + _plain(found["number"])


def _dotted(found: re.Match[str]) -> str:
    return " point ".join(cardinal(part) for part in found[0].split("."))


# In this order: what is written in more detail first, so that a number by itself is left for last.
_RULES: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...]] = (
    (
        re.compile(r"(?<![\d-])(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)(?![\d-])"),
        _iso,
    ),
    (
        re.compile(
            rf"\b{_MONTH}\.? (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?![\d:.]\d|\d)"
            r"(?:,? (?P<year>\d{4})\b)?"
        ),
        _day_of,
    ),
    (
        re.compile(
            r"(?<![\w.,:/$€£¥-])(?P<the>[Tt]he )?(?P<day>\d{1,2})(?:st|nd|rd|th)? (?:of )?"
            rf"{_MONTH}\b"
            r"(?:,? (?P<year>\d{4})\b)?"
        ),
        _day_before_month,
    ),
    (
        re.compile(
            r"(?<![\d:.])(?P<hour>\d{1,2}):(?P<minute>\d\d)(?![\d:])"
            r"(?: ?(?P<half>[AaPp])\.?[Mm]\b\.?)?"
        ),
        _time,
    ),
    (
        re.compile(
            r"(?<![\w:.])(?P<hour>\d{1,2})(?P<minute>) ?(?P<half>[AaPp](?=\.?[Mm]\b))\.?[Mm]\b\.?"
        ),
        _time,
    ),
    (
        re.compile(
            rf"(?P<sign>[$€£¥]) ?(?P<number>{_NUMBER})"
            r"(?: ?(?P<scale>bn|tn|[kKmMbBT]|hundred|thousand|million|billion|trillion)\b)?"
        ),
        _money,
    ),
    (
        re.compile(
            r"(?<![\w.+-])(?:\+?\d{1,3}[ -])?(?:\(\d{2,4}\) ?|\d{2,4}-)(?:\d{2,4}-)?\d{4}(?![\w-])"
        ),
        lambda found: (
            _telephone(found)
            if not re.fullmatch(r"(?:1[1-9]|20)\d\d-(?:1[1-9]|20)\d\d", found[0])
            else found[0]
        ),
    ),
    (
        re.compile(
            r"(?<![\w.+-])(?:\+?\d{1,8}(?:-\d{1,8}){2,8}|\+\d{1,3}(?: \d{2,8}){1,5})(?![\w-])"
        ),
        _telephone,
    ),
    (re.compile(r"(?<![\w.-])(?P<low>\d{1,4})[-–](?P<high>\d{1,4})(?![\w-]|\.\d)"), _range),
    (re.compile(r"(?<![\w'])'?(?P<digits>(?:1[1-9]|20)\d0|[2-9]0)s\b"), _decade),
    (
        re.compile(r"(?<![\w/])(?:1/[23458]|1/10|2/3|3/4)(?![\w/])"),
        lambda found: _FRACTIONS[found[0]],
    ),
    (
        re.compile(
            rf"(?<![\w.])(?P<sign>[-−](?=\d))?(?P<number>{_NUMBER}) ?"
            rf"(?P<unit>{'|'.join(sorted(map(re.escape, _UNITS), key=len, reverse=True))})(?![\w/])"
        ),
        _measure,
    ),
    (re.compile(r"(?<![\w.])\d{1,6}(?:\.\d{1,6}){2,5}(?![\w.]*\d)"), _dotted),
    (
        re.compile(rf"(?<![\w.])(?P<sign>[-−])?(?P<number>{_NUMBER})(?P<end>st|nd|rd|th)?(?!\w)"),
        _number,
    ),
)
# What is left stands within a name: "GPT-4", "3D", "C17".
_WITHIN: Final = re.compile(r"(?<=[A-Za-z])(?=\d)|(?<=\d)(?=[A-Za-z])")
_REST: Final = re.compile(r"\d+")


def amounts_in_words(text: str) -> str:
    """`text` without a digit."""
    for pattern, spoken in _RULES:
        text = pattern.sub(lambda found, spoken=spoken: _or_as_it_is(spoken, found), text)
    if any(map(str.isdigit, text)):
        text = _REST.sub(lambda found: _plain(found[0]), _WITHIN.sub(" ", text))
    return text


def _or_as_it_is(spoken: Callable[[re.Match[str]], str], found: re.Match[str]) -> str:
    try:
        return spoken(found)
    except ValueError:
        return found[0]
