import pytest

from serve_app.text.markup import MAX_PAUSE_S, MAX_PAUSES_S, Pause, read_markup
from serve_app.text.normalise import Normalisation
from serve_app.text.script import Unit, script


def read(text, language="english", max_frames=500.0, **options):
    return script(text, language, max_frames, Normalisation(**options))


@pytest.mark.parametrize(
    "text", ["Hello.", "a < b and <b>bold</b> > c", "R&amp;D", "See [1] and [note].", "...", "🙂"]
)
def test_a_text_without_tags_is_one_unit_as_it_is(text):
    assert read(text) == (Unit(text),)


@pytest.mark.parametrize(
    ("tag", "seconds"),
    [
        ("[pause 0.5s]", 0.5),
        ("[pause:250ms]", 0.25),
        ("[Pause = 2 seconds]", 2),
        ("[break]", 0.5),
        ("[silence 1]", 1),
        ("[pause 99999s]", MAX_PAUSE_S),
        ('<break time="300ms"/>', 0.3),
        ("<break time='1.5s' />", 1.5),
        ('<break strength="strong"/>', 0.6),
        ("<break/>", 0.35),
        ('<BREAK TIME="1S"></BREAK>', 1),
    ],
)
def test_a_pause_is_silence_and_not_words(tag, seconds):
    expected = (Unit("Hello"), Unit("world.", pause_before_s=seconds))
    assert read(f"Hello {tag} world.") == expected


def test_pauses_at_both_ends_are_kept():
    expected = Unit("Hi.", pause_before_s=0.5, pause_after_s=1.0)
    assert read("[pause] Hi. [pause 1s]") == (expected,)


def test_a_text_of_pauses_says_nothing():
    assert read("[pause] . <break/>") == ()
    assert read("\u200b") == ()


def test_all_pauses_together_have_a_limit():
    parts = read_markup("a [pause 10s] " * 200, "en")
    assert sum(part.seconds for part in parts if isinstance(part, Pause)) == MAX_PAUSES_S


@pytest.mark.parametrize(
    ("rate", "factor"),
    [
        ("slow", 0.75),
        ("x-fast", 1.6),
        ("120%", 1.2),
        ("+20%", 1.2),
        ("-20%", 0.8),
        ("1.5", 1.5),
        ("99", 4.0),
        ("0", 0.25),
        ("nan", 1.0),
        ("soon", 1.0),
        ("%", 1.0),
        ("", 1.0),
    ],
)
def test_prosody_changes_the_rate(rate, factor):
    (unit,) = read(f'<speak><prosody rate="{rate}">Hello.</prosody></speak>')
    assert unit == Unit("Hello.", pytest.approx(factor))


def test_rates_within_each_other_multiply_and_end_with_their_element():
    text = 'a <prosody rate="slow">b <prosody rate="200%">c</prosody> d</prosody> e'
    assert [(unit.text, unit.rate) for unit in read(text)] == [
        ("a", 1),
        ("b", 0.75),
        ("c", 1.5),
        ("d", 0.75),
        ("e", 1),
    ]


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ('<say-as interpret-as="characters">ABC</say-as>', "A B C"),
        ('<say-as interpret-as="digits">42</say-as>', "4 2"),
        ('<say-as interpret-as="ordinal">3</say-as>', "third"),
        ('<say-as interpret-as="cardinal">12</say-as>', "twelve"),
        ('<say-as interpret-as="cardinal">x</say-as>', "x"),
        ('<say-as interpret-as="date">1 May</say-as>', "1 May"),
        ('<sub alias="World Wide Web">WWW</sub>', "World Wide Web"),
        ('<emphasis level="strong">yes</emphasis>', "yes"),
        ('<voice name="x"><lang xml:lang="fr">oui</lang></voice>', "oui"),
        ('<phoneme ph="x">word</phoneme>', "word"),
        ("<desc>not this</desc>this", "this"),
        ('<?xml version="1.0"?><!-- note -->text<mark name="m"/>', "text"),
        ("Q &amp; A &lt;3", "Q & A <3"),
    ],
)
def test_ssml_is_followed_or_left_out_but_never_spoken(text, spoken):
    assert read(f"<speak>{text}</speak>") == (Unit(spoken),)


def test_paragraphs_of_ssml_are_paragraphs():
    assert read("<speak><p>One.</p><p>Two.</p></speak>") == (Unit("One.\n\nTwo."),)


@pytest.mark.parametrize("text", ["<speak>a", "a</speak>", "</prosody>a</p>", "<speak a='>a"])
def test_what_is_not_well_formed_is_spoken_all_the_same(text):
    (unit,) = read(text)
    assert unit.text.endswith("a")


def test_long_text_becomes_units_with_pauses():
    found = read("One sentence here. " * 40, max_frames=100)
    assert len(found) > 5
    assert all(unit.pause_after_s > 0 for unit in found[:-1])
    assert found[-1].pause_after_s == 0


def test_what_a_request_asks_for_is_rewritten():
    text = "**Call** me at 5 🙂 [pause 1s] now"
    found = read(text, markdown=True, emoji=True, words=True)
    assert found == (Unit("Call me at five"), Unit("now", pause_before_s=1.0))
    assert read(text)[0] == Unit("**Call** me at 5 🙂")


@pytest.mark.parametrize(
    "part",
    ["<", "<break", 'a="b" ', "[pause ", "<!--", "[ ", '<prosody rate="1.1">', "<p>a", "1", "1.",
     "1,", "http://", "a@", "*", "[", "**a", "`", "> ", "👨\u200d", "1,111", "(",
     "\u0301\u0316", f"<p {'a' * 996}>"],
)  # fmt: skip
def test_nothing_repeated_takes_long(part):
    read(part * (32_768 // len(part)), markdown=True, emoji=True, words=True)


def test_a_number_that_the_library_has_no_end_for_stays_as_it_is_written():
    text = '<say-as interpret-as="ordinal">999999999999999</say-as>'
    (unit,) = script(text, "spanish", 1000)
    assert unit.text == "999999999999999"


@pytest.mark.parametrize(
    "number", ["1e999999999", "-1E+999999999", "1e-999999999", "1e50", "Infinity", "-inf", "NaN"]
)
@pytest.mark.parametrize("kind", ["cardinal", "ordinal"])
def test_a_number_that_nobody_can_say_stays_as_it_is_written(number, kind):
    (unit,) = read(f'<say-as interpret-as="{kind}">{number}</say-as>')
    assert unit.text == number
