"""English in the words that a small voice was made on."""

import re

import pytest

from serve_app.text.english.amounts import amounts_in_words
from serve_app.text.english.capitals import capitals_in_words
from serve_app.text.english.plain import plain_english
from serve_app.text.normalise import Normalisation
from serve_app.text.script import script


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("1,234,005", "one million two hundred and thirty four thousand and five"),
        ("3.14159", "three point one four one five nine"),
        ("007", "zero zero seven"),
        ("1987", "nineteen eighty seven"),
        ("2000, 2005, 1905", "two thousand, two thousand and five, nineteen oh five"),
        ("the 1990s", "the nineteen nineties"),
        ("2026-11-26", "November twenty sixth, twenty twenty six"),
        ("2026-13-40", "two zero two six, one three, four zero"),
        ("March 14, 1987", "March fourteenth, nineteen eighty seven"),
        ("Jan. 3rd", "January third"),
        ("6 September 1998", "the sixth of September, nineteen ninety eight"),
        ("the 1st of May, 32 May", "the first of May, thirty two May"),
        ("10:30 a.m., 7pm, 23:45", "ten thirty a.m., seven p.m., twenty three forty five"),
        ("6:05 and 10:00", "six oh five and ten o'clock"),
        ("$12.50", "twelve dollars and fifty cents"),
        ("€1,299.99", "one thousand two hundred and ninety nine euros and ninety nine cents"),
        ("£1, $0.05, £3m", "one pound, five cents, three million pounds"),
        ("$1.5 billion", "one point five billion dollars"),
        ("5 kg, 1 ft, 50%", "five kilograms, one foot, fifty percent"),
        ("-5°C, 12 km/h", "minus five degrees Celsius, twelve kilometers per hour"),
        ("555-0123", "five five five, zero one two three"),
        ("1-800-555-0199", "one, eight zero zero, five five five, zero one nine nine"),
        ("10-20, 1914-1918", "ten to twenty, nineteen fourteen to nineteen eighteen"),
        ("1st, 22nd", "first, twenty second"),
        ("1/2", "one half"),
        ("2.10.3", "two point ten point three"),
        ("1234567890123", "one two three four five six seven eight nine zero one two three"),
    ],
)  # fmt: skip
def test_amounts_are_said(written: str, spoken: str) -> None:
    assert amounts_in_words(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("PLEASE DO NOT TOUCH IT. WARNING!", "Please do not touch it. warning!"),
        ("the FBI, PDFs and HTML", "the eff bee eye, pee dee effs and aitch tee em ell"),
        ("NASA is OK, NOT bad", "Nasa is okay, not bad"),
        ("Henry VIII and World War II", "Henry the eighth and World War two"),
        ("Chapter IV, Part I", "Chapter four, Part one"),
        ("I, Claudius, and A to Z", "I, Claudius, and A to zee"),
        ("Charles I did", "Charles I did"),
        ("U.S. law at 3 a.m.", "you ess law at 3 a.m."),
    ],
)
def test_capitals_are_said(written: str, spoken: str) -> None:
    assert capitals_in_words(written) == spoken


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        (
            "Dr. Smith is at 5 St. James St., e.g. for tea, etc.",
            "Doctor Smith is at five Saint James Street, for example for tea, et cetera.",
        ),
        ("“That’s it” — isn’t it?!?!", '"That\'s it", isn\'t it?'),
        ("Well... I don't know... maybe?", "Well. I don't know, maybe?"),
        ("x >= 5 & 2^10", "x is at least five and two to the power of ten."),
        ("See a@b.com, https://www.b.com/c.", "See a at b dot com, b dot com slash c."),
        ("one\n\ntwo,\nthree!", "one.\ntwo,\nthree!"),
        ("main.py of debian.org at 3", "main dot py of debian dot org at three."),
        ("i think i'm, i.e. wi-fi (i) -i x.i", "I think I'm, that is wi-fi (I) -i x.i."),
        ("café", "cafe."),
        ("Søren of Łódź, Straße 5", "Soren of Lodz, Strasse five."),
        ("π ≈ 3.1, 5 µm and 2 Ω", "pi about three point one, five micrometers and two omega."),
        ("issue #482, C++17", "issue number four hundred and eighty two, see plus plus seventeen."),
        ("...!?!", "...!?!"),
    ],
)  # fmt: skip
def test_signs_and_abbreviations_are_said(written: str, spoken: str) -> None:
    assert plain_english(written) == spoken


def test_no_figure_and_no_sign_is_left_of_what_people_type() -> None:
    text = "v1.2: A4 & 3D_print (24/7) | 5'10\" = 1.78m; 50~60% [x] {y} <z> #1 @2 £3k 4×5 ½ 10⁻³"
    assert re.fullmatch(r"[A-Za-z ,;:.!?'\"()-]+", plain_english(text))


def read(text: str, language: str = "auto", **options: bool) -> list[str]:
    return [unit.text for unit in script(text, language, 200, Normalisation(plain=True, **options))]


def test_an_answer_of_a_chat_is_sentences() -> None:
    text = "# Steps\n\n1. *Install* it\n2. Run `make`\n\n```sh\nmake\n```\n\nDone 🎉"
    said = "Steps. one. Install it. two. Run make. Done."
    assert read(text, markdown=True, emoji=True) == [said]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("👍", "thumbs up."),
        ("```\nprint(x)\n```", "print(x)."),
        ("你好。", "你好。"),
    ],
)
def test_what_is_nothing_else_is_said_all_the_same(text: str, said: str) -> None:
    assert read(text, markdown=True, emoji=True) == [said]


@pytest.mark.parametrize("text", ["...", "---", "* * *", "```\n```"])
def test_stops_and_signs_alone_are_nothing(text: str) -> None:
    assert read(text, markdown=True, emoji=True) == []


@pytest.mark.parametrize(
    "part",
    ["1,", "1-", "1.", "12:", "$1", "A", "A.", "A ", "AB ", "I X", "St. ", "a_", "...", "- ", "=",
     "Jan 1 ", "+1 ", "[a](", "?!", "(", "e.g.", "Ⅷ", "½", "π", "1-1", "\"", "aA"],
)  # fmt: skip
def test_nothing_repeated_takes_long(part: str) -> None:
    read(part * (32_768 // len(part)))
