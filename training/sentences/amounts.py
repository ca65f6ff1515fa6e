"""Numbers, dates, times and money, each as it is written and as it is read out."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from num2words import num2words

_MONTHS: Final = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SITES: Final = ("example", "bluebird", "northwind", "lakeside", "paperboat", "starling")
_DAYS_OF_A_MONTH: Final = 28


@dataclass(frozen=True)
class Said:
    """A piece of text: as written, as read out."""

    written: str
    spoken: str


def _cardinal(number: float) -> str:
    return num2words(number).replace("-", " ").replace(",", "")


def _ordinal(number: int) -> str:
    return num2words(number, to="ordinal").replace("-", " ")


def _year_words(year: int) -> str:
    return num2words(year, to="year").replace("-", " ")


def _count(rng: random.Random, low: int, high: int) -> Said:
    number = rng.randint(low, high)
    return Said(f"{number}", _cardinal(number))


def _large(rng: random.Random) -> Said:
    number = rng.randint(11, 999) * 10 ** rng.randint(2, 4) + rng.choice((0, 0, rng.randint(1, 99)))
    return Said(f"{number:,}", _cardinal(number))


def _number(rng: random.Random) -> Said:
    """As many of each length, up to six digits; a comma from four digits on, mostly."""
    digits = rng.choice((1, 2, 3, 4, 4, 4, 5, 6))
    number = rng.randint(10 ** (digits - 1), 10**digits - 1)
    if digits > 3 and rng.random() < 0.5:
        number -= number % rng.choice((10, 50, 100))
    has_comma = digits > 4 or rng.random() < 0.8
    return Said(f"{number:,}" if has_comma else f"{number}", _cardinal(number))


def _minus(rng: random.Random) -> Said:
    number = rng.choice((rng.randint(1, 20), rng.randint(1, 99)))
    return Said(f"-{number}", f"minus {_cardinal(number)}")


def _worded(rng: random.Random) -> Said:
    """A number that is written as words, perhaps with hyphens, which nobody hears."""
    number = rng.choice((rng.randint(1, 99), rng.randint(20, 99), 100 * rng.randint(1, 99)))
    return Said(num2words(number).replace(",", ""), _cardinal(number))


def _decade(rng: random.Random) -> Said:
    year = rng.choice((1800, 1900)) + 10 * rng.randint(1, 9)
    words = _year_words(year)
    return Said(f"{year}s", words[:-1] + "ies" if words.endswith("y") else f"{words}s")


def _fraction(rng: random.Random) -> Said:
    pairs = (
        ("1/2", "one half"), ("1/3", "one third"), ("2/3", "two thirds"), ("1/4", "one quarter"),
        ("3/4", "three quarters"), ("1/5", "one fifth"), ("1/10", "one tenth"),
    )  # fmt: skip
    return Said(*rng.choice(pairs))


def _decimal(rng: random.Random) -> Said:
    whole = rng.randint(0, 120)
    part = rng.choice((f"{rng.randint(1, 9)}", f"{rng.randint(1, 99):02d}"))
    words = " ".join(_DIGITS[int(digit)] for digit in part)
    return Said(f"{whole}.{part}", f"{_cardinal(whole)} point {words}")


def _place(rng: random.Random) -> Said:
    number = rng.choice((rng.randint(1, 31), rng.randint(1, 31), rng.randint(32, 999)))
    last = 0 if 10 < number % 100 < 20 else number % 10
    ending = {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    return Said(f"{number}{ending}", _ordinal(number))


def _year(rng: random.Random) -> Said:
    year = rng.choice((rng.randint(1100, 1999), rng.randint(1900, 1999), rng.randint(1950, 2035)))
    return Said(f"{year}", _year_words(year))


def _date(rng: random.Random) -> Said:
    month, day = rng.choice(_MONTHS), rng.randint(1, _DAYS_OF_A_MONTH)
    year = rng.randint(1900, 2035)
    ordinal = _ordinal(day)
    return rng.choice(
        (
            Said(f"{month} {day}", f"{month} {ordinal}"),
            Said(f"{month} {day}, {year}", f"{month} {ordinal}, {_year_words(year)}"),
            Said(f"{day} {month} {year}", f"the {ordinal} of {month}, {_year_words(year)}"),
            Said(f"{month[:3]}. {day}", f"{month} {ordinal}"),
        )
    )


def _day(rng: random.Random) -> Said:
    day = rng.choice(_WEEKDAYS)
    return Said(day, day)


def _time(rng: random.Random) -> Said:
    hour, minute = rng.randint(1, 12), rng.choice((0, 5, 10, 15, 20, 30, 45, rng.randint(1, 59)))
    words = _cardinal(hour)
    if rng.random() < 0.1:  # as a timetable has it
        hour, minute = rng.randint(13, 23), rng.randint(10, 59)
        return Said(f"{hour}:{minute}", f"{_cardinal(hour)} {_cardinal(minute)}")
    if minute == 0:
        half, half_spoken = rng.choice((("a.m.", "a m"), ("p.m.", "p m")))
        return rng.choice(
            (
                Said(f"{hour} {half}", f"{words} {half_spoken}"),
                Said(f"{hour} o'clock", f"{words} o'clock"),
            )
        )
    spoken = f"oh {_cardinal(minute)}" if minute < len(_DIGITS) else _cardinal(minute)
    return Said(f"{hour}:{minute:02d}", f"{words} {spoken}")


def _money(rng: random.Random) -> Said:
    sign, one, many, cent = rng.choice(
        (
            ("$", "dollar", "dollars", "cent"),
            ("£", "pound", "pounds", "penny"),
            ("€", "euro", "euros", "cent"),
        )
    )
    whole = rng.choice(
        (rng.randint(1, 20), rng.randint(1, 999), 50 * rng.randint(20, 90), rng.randint(1000, 9999))
    )
    cents = rng.choice((0, 0, 5 * rng.randint(1, 19), rng.randint(1, 99)))
    unit = one if whole == 1 else many
    if not cents:
        return Said(f"{sign}{whole:,}", f"{_cardinal(whole)} {unit}")
    small = cent if cents == 1 else {"cent": "cents", "penny": "pence"}[cent]
    spoken = f"{_cardinal(whole)} {unit} and {_cardinal(cents)} {small}"
    return Said(f"{sign}{whole:,}.{cents:02d}", spoken)


def _share(rng: random.Random) -> Said:
    if rng.random() < 0.3:
        part = _decimal(rng)
        return Said(f"{part.written}%", f"{part.spoken} percent")
    number = rng.randint(1, 100)
    return Said(f"{number}%", f"{_cardinal(number)} percent")


def _code(rng: random.Random) -> Said:
    digits = [rng.randint(0, 9) for _ in range(rng.choice((3, 4, 6)))]
    written = " ".join(map(str, digits))
    return Said(written, " ".join(_DIGITS[digit] for digit in digits))


def _phone(rng: random.Random) -> Said:
    groups = [[rng.randint(0, 9) for _ in range(size)] for size in (3, 4)]
    written = "-".join("".join(map(str, group)) for group in groups)
    return Said(written, ", ".join(" ".join(_DIGITS[digit] for digit in g) for g in groups))


def _site(rng: random.Random) -> Said:
    name, end = rng.choice(_SITES), rng.choice(("com", "org", "net"))
    if rng.random() < 0.5:
        return Said(f"{name}.{end}", f"{name} dot {end}")
    who = rng.choice(("info", "hello", "help", "sales"))
    return Said(f"{who}@{name}.{end}", f"{who} at {name} dot {end}")


def _measure(rng: random.Random) -> Said:
    sign, word = rng.choice(
        (
            ("kg", "kilograms"),
            ("mm", "millimeters"),
            ("MB", "megabytes"),
            ("km/h", "kilometers per hour"),
            ("°F", "degrees Fahrenheit"),
            ("km", "kilometers"),
            ("cm", "centimeters"),
            ("mph", "miles per hour"),
            ("°C", "degrees Celsius"),
            ("GB", "gigabytes"),
        )
    )
    number = rng.randint(2, 250)
    return Said(f"{number} {sign}", f"{_cardinal(number)} {word}")


def _title(rng: random.Random) -> Said:
    pairs = (("Dr.", "Doctor"), ("Mr.", "Mister"), ("Mrs.", "Missus"), ("Prof.", "Professor"))
    return Said(*rng.choice(pairs))


AMOUNTS: Final[Mapping[str, Callable[[random.Random], Said]]] = {
    "few": lambda rng: _count(rng, 2, 12),
    "some": lambda rng: _count(rng, 13, 99),
    "lots": lambda rng: _count(rng, 100, 999),
    "large": _large,
    "number": _number,
    "minus": _minus,
    "worded": _worded,
    "decade": _decade,
    "fraction": _fraction,
    "decimal": _decimal,
    "nth": _place,
    "year": _year,
    "date": _date,
    "day": _day,
    "time": _time,
    "money": _money,
    "share": _share,
    "code": _code,
    "phone": _phone,
    "site": _site,
    "measure": _measure,
    "title": _title,
}
