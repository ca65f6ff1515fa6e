import unicodedata

import pytest

from serve_app.text.normalise import clean, in_words, without_emoji, without_markdown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   world. ", "Hello, world."),
        ("e\u0301te\u0301", "été"),
        ("a\u200bb\u00adc\ufeffd\u202ee", "abcde"),
        ("a\x00b\x07c\x7f", "abc"),
        ("a\tb", "a b"),
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("a\n \n\n\n b", "a\n\nb"),
        ("a \n b", "a\nb"),
        ("\u200b", ""),
        ("کتاب\u200cها", "کتاب\u200cها"),
        ("👨\u200d👩", "👨\u200d👩"),
        ("\u200b\u200d\u200c \u200d", ""),
        ("\u200dab\u200c ", "ab"),
    ],
)
def test_invisible_characters_and_spaces_are_tidied(text, expected):
    assert clean(text) == expected
    assert clean(expected) == expected


def test_a_heap_of_marks_on_one_letter_is_cut_and_others_stay():
    heap = "\u0301\u0316" * 500_000
    kept = clean(f"a{heap}b{heap}c")
    assert set(kept) <= set("aábc\u0301\u0316")
    assert [len(part) for part in (kept.split("b")[0], kept.split("b")[1])] == [30, 31]
    vietnamese = "Tiê\u0301ng Viê\u0323t"
    assert clean(vietnamese) == "Tiếng Việt"
    assert clean("का\u0302\u0323") == unicodedata.normalize("NFC", "का\u0302\u0323")


def test_clean_text_has_no_control_characters_whatever_comes():
    text = "".join(map(chr, range(0x3000)))
    kept = clean(text)
    assert {unicodedata.category(char) for char in kept} & {"Cc"} == (
        {"Cc"} if "\n" in kept else set()
    )
    assert not set(kept) & set("\x00\x1b\u200b\u202e")


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (
            "en",
            "It costs 1,234.50.",
            "It costs one thousand, two hundred and thirty four point five.",
        ),
        ("en", "50% of 3 on the 21st", "fifty percent of three on the twenty first"),
        ("en", "-5 degrees", "minus five degrees"),
        (
            "de",
            "1.234,5 und 3 %",
            "eintausendzweihundertvierunddreißig Komma fünf und drei Prozent",
        ),
        ("fr", "12\u00a0345", "douze mille trois cent quarante-cinq"),
        ("ja", "1234円", "千二百三十四円"),
        ("zh", "1234元", "1234元"),
        ("en", "See https://www.example.com/a-b.", "See example dot com slash a dash b."),
        ("es", "a@b.es", "a arroba b punto es"),
    ],
)
def test_numbers_and_addresses_become_words(code, text, expected):
    assert in_words(text, code) == expected


@pytest.mark.parametrize(
    "text",
    [
        "1,234.567,89",
        "1,5.123,4",
        "$3.14",
        "3 €",
        "10:30",
        "2026-11-25",
        "v1.2.3",
        "007",
        "12345678901234567890",
        "A4",
        "1/2",
    ],
)
def test_what_is_no_plain_number_is_left_to_the_model(text):
    assert in_words(text, "en") == text


def test_markdown_is_read_as_it_shows():
    text = (
        "# Title\n\nSome *bold* `code` and [a link](http://x.y) ![a picture](z.png).\n\n"
        "- one\n- two\n\n```py\nprint(1)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "> quoted\n\n5 * 6"
    )
    shown = "Title\n\nSome bold code and a link a picture.\n\none\ntwo\na, b\n1, 2\nquoted\n\n5 * 6"
    assert without_markdown(text).replace("\n\n", "\n") == shown.replace("\n\n", "\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("1986. A great year.", "1986. A great year."),
        ("1. one\n2. two", "1. one\n2. two"),
        ("Roses are red,\n\n    violets are blue.", "Roses are red,\n\nviolets are blue."),
        ("[Anna]: Hello", "[Anna]: Hello"),
    ],
)
def test_no_word_is_taken_for_markdown(text, shown):
    assert without_markdown(text) == shown


def test_text_without_markdown_stays():
    text = "Plain, with 2 < 3 and [pause 0.5s] in it."
    assert without_markdown(text) == text
    assert without_markdown("[" * 30_000) == "[" * 30_000


@pytest.mark.parametrize("text", ["Hi 👨‍👩‍👧!", "Hi ❤️!", "Hi 👍🏽!", "Hi 🇩🇪!"])
def test_emoji_are_left_out_whole(text):
    assert clean(without_emoji(text)) == "Hi !"


def test_a_run_of_joined_emoji_takes_no_longer_than_other_text():
    assert clean(without_emoji("👨‍" * 16_000)) == ""
