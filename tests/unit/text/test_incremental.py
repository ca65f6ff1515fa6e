import random

import pytest

from serve_app.text.incremental import TextFeed
from serve_app.text.splitting import CLAUSE_PAUSE_S, PARAGRAPH_PAUSE_S, SENTENCE_PAUSE_S

TEXT = (
    'Well, as far as I can see, Dr. Smith paid $3.14 for it. "Really?" she asked. Yes! '
    "See https://a.b/c?d=e. J. R. R. Tolkien wrote:\n\n- one thing\n- two, or so. And then the end"
)


def texts(pieces):
    return [piece.text for piece in pieces]


def fed(feed, pieces):
    found = [unit for piece in pieces for unit in feed.feed(piece)]
    return texts(found + feed.finish())


def pieces_of(text, seed=None, size=3):
    rng, start = random.Random(seed), 0
    while start < len(text):
        end = start + (size if seed is None else rng.randrange(1, 9))
        yield text[start:end]
        start = end


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_sentences_come_out_whole_however_the_text_comes(size):
    feed = TextFeed("english", first_clause=False)
    assert fed(feed, pieces_of(TEXT, size=size)) == [
        "Well, as far as I can see, Dr. Smith paid $3.14 for it.",
        '"Really?" she asked.',
        "Yes!",
        "See https://a.b/c?d=e.",
        "J. R. R. Tolkien wrote:",
        "- one thing",
        "- two, or so.",
        "And then the end",
    ]


@pytest.mark.parametrize("granularity", ["none", "sentence", "clause"])
@pytest.mark.parametrize("seed", range(10))
def test_no_character_is_lost(granularity, seed):
    feed = TextFeed("auto", granularity, max_frames=40)
    text = TEXT + "。你好，今天天气很好！「真的吗？」她说。" + "x" * 200
    found = fed(feed, pieces_of(text, seed))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(unit == unit.strip() != "" for unit in found)


def test_the_first_unit_is_given_out_at_the_first_clause():
    feed = TextFeed("english")
    found = []
    for char in "Yes, as far as I can see, that":
        found += texts(feed.feed(char))
    # Not "Yes,": that is too short to be worth it.
    assert found == ["Yes, as far as I can see,"]
    assert fed(feed, " is so, or so I think. Or not, I guess.") == [
        "that is so, or so I think.",
        "Or not, I guess.",
    ]


def test_a_sentence_is_given_out_as_soon_as_another_has_begun():
    feed = TextFeed("english")
    assert feed.feed("That is all.") == []
    assert feed.feed(" ") == []
    assert texts(feed.feed("A")) == ["That is all."]


def test_clauses_are_units_where_that_is_asked_for():
    feed = TextFeed("english", "clause")
    assert fed(feed, ["When it rains, and it does, we stay at home; else we go."]) == [
        "When it rains,",
        "and it does,",
        "we stay at home;",
        "else we go.",
    ]


def test_chinese_needs_no_spaces():
    feed = TextFeed("chinese", first_clause=False)
    text = "你好，今天天气很好！「真的吗？」她说。我们走吧"
    assert fed(feed, text) == ["你好，今天天气很好！", "「真的吗？」", "她说。", "我们走吧"]


def test_a_text_without_an_end_is_cut_between_words():
    found = fed(TextFeed("english", max_frames=50), pieces_of("word " * 100))
    assert len(found) > 8
    assert {word for unit in found for word in unit.split()} == {"word"}


def test_nothing_is_given_out_before_the_end_where_that_is_asked_for():
    feed = TextFeed("english", "none")
    assert feed.feed("One. Two. Three.") == []
    assert texts(feed.finish()) == ["One. Two. Three."]


def test_an_empty_text_has_no_unit_and_a_feed_can_be_used_again():
    feed = TextFeed("english")
    assert fed(feed, ["", "  ", "\n"]) == []
    assert fed(feed, ["As I said before, and now."]) == ["As I said before,", "and now."]
    assert fed(feed, ["As I said before, and now."]) == ["As I said before,", "and now."]


def test_what_waits_can_be_had_before_the_end():
    feed = TextFeed("english")
    feed.feed("One moment")
    assert feed.num_waiting == len("One moment")
    assert texts(feed.flush()) == ["One moment"]
    assert feed.num_waiting == 0
    # The next one is not the first.
    assert feed.feed(" please, I am looking for it, as") == []


def test_pauses_are_those_of_a_reader():
    feed = TextFeed("english")
    pieces = feed.feed("As far as I know, it is. It was.\n\nAnd it will be.")
    assert [(piece.text, piece.pause_s) for piece in pieces] == [
        ("As far as I know,", CLAUSE_PAUSE_S),
        ("it is.", SENTENCE_PAUSE_S),
        ("It was.", PARAGRAPH_PAUSE_S),
    ]
