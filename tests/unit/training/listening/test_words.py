"""Words are compared as they are said, whichever way they are written."""

import pytest

from training.listening.words import lacks_end, repeats, word_errors, words

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("written", "heard"),
    [
        ("It leaves at 10:30 from platform 4.", "it leaves at ten thirty from platform four"),
        ("It costs $5.20, including tax.", "It costs five dollars and twenty cents including tax"),
        ("She was born on March 3, 1984.", "She was born on March third nineteen eighty-four."),
        ("Call me at 555-0142 after six.", "Call me at five five five oh one four two after 6"),
        ("There were 1,250 people.", "There were one thousand two hundred and fifty people."),
        ("It dropped to -12 degrees.", "It dropped to minus twelve degrees."),
        ("1,598 cups and 93,771 saucers", "1500 and 98 cups and 93,700 and 71 saucers"),
        ("2 plus 3 at 5 mph, a@b.org", "2+3 at five miles per hour, a at b.org"),
        ("1/2 at 7 o'clock", "one half at 7:00"),
        ("221 Baker Street", "Two twenty-one Baker Street"),
        ("221 Baker Street", "Two hundred and twenty one Baker Street"),
        ("1,200,000 or 37%", "one million two hundred thousand or thirty seven percent"),
        ("Dr. Smith, the colour of wood smoke", "Doctor Smith the color of woodsmoke"),
        ("You should practise at 5 p.m.", "you should practice at five p m"),
        ("the 21st of May, 2007", "The twenty-first of May, two thousand and seven."),
    ],
)  # fmt: skip
def test_numbers_and_spellings_may_differ(written: str, heard: str) -> None:
    assert word_errors(written, heard)[0] == 0, (words(written), words(heard))


@pytest.mark.parametrize(
    ("text", "heard", "wrong"),
    [
        ("the cat sat", "the cat", 1),
        ("the cat sat", "a cat sat down", 2),
        ("the cat sat", "", 3),
        ("at 10:30", "at ten forty", 1),
        ("500 and 198 cups", "598 cups", 3),
        ("two and three apples", "two or three apples", 1),
    ],
)
def test_errors_are_counted(text: str, heard: str, wrong: int) -> None:
    assert word_errors(text, heard)[0] == wrong, (words(text), words(heard))


@pytest.mark.parametrize(
    ("heard", "lacks"),
    [
        ("the cat sat down", False),
        ("the cat sat", True),
        ("a cat sat", True),
        ("the cat sat town", False),
        ("the cat sat down there", False),
        ("", False),
        ("something else altogether", False),
    ],
)
def test_an_end_that_was_not_heard_is_told_from_one_that_was_misheard(
    heard: str, lacks: bool
) -> None:
    assert lacks_end("The cat sat down.", heard) is lacks


@pytest.mark.parametrize(
    ("text", "heard", "twice"),
    [
        ("the cat sat", "the cat cat sat", True),
        ("the cat sat", "the cat the cat sat", True),
        ("no no the cat", "no no the cat", False),
        ("dial 555-0142", "dial five five five oh one four two", False),
        ("that was that", "that was that", False),
    ],
)
def test_what_is_heard_twice_is_found(text: str, heard: str, twice: bool) -> None:
    assert repeats(text, heard) is twice
