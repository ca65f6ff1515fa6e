import random

import pytest

from serve_app.text.splitting import (
    PARAGRAPH_PAUSE_S,
    SENTENCE_PAUSE_S,
    estimated_frames,
    sentences,
    units,
)

TEXTS = {
    "en": 'Mr. Smith paid $3.14, e.g. for tea. "Really?" she asked. See https://a.b/c!\n\nEnd.',
    "de": "Das ist z. B. gut. Am 3. Mai kam er, wie immer, zu spät.\n\nEnde.",
    "fr": "Il dit : « Oui. » Puis M. Dupont part ; elle reste.\n\nFin.",
    "ru": "Привет! Это стоит 5 руб. и т.д. Как дела?\n\nКонец.",
    "zh": "你好，今天天气很好！「真的吗？」她说。我们走吧。\n\n结束。",
    "ja": "「はい。」と言った。次は、東京です！\n\n終わり。",
    "ko": "안녕하세요. 저는 학생입니다, 그리고 좋아요!\n\n끝.",
    "ar": "مرحبا، كيف حالك؟ بخير.\n\nنهاية.",
    "hi": "नमस्ते। आप कैसे हैं?\n\nअंत।",
    "th": "สวัสดีครับ วันนี้อากาศดี\n\nจบ",
}


def without_spaces(text):
    return "".join(text.split())


@pytest.mark.parametrize("code", TEXTS)
@pytest.mark.parametrize("max_frames", [8, 30, 75, 300])
def test_no_character_is_lost_and_no_unit_is_too_long(code, max_frames):
    text = TEXTS[code] * 5
    found = units(text, code, max_frames)
    assert without_spaces("".join(unit.text for unit in found)) == without_spaces(text)
    assert all(unit.text == unit.text.strip() != "" for unit in found)
    assert all(estimated_frames(unit.text) <= max_frames for unit in found)
    assert found[-1].pause_s == 0


@pytest.mark.parametrize("seed", range(20))
def test_any_text_keeps_its_characters(seed):
    rng = random.Random(seed)
    marks = [
        "a",
        "Bc",
        "9",
        " ",
        "  ",
        "\n",
        "\n\n",
        ".",
        ",",
        "!",
        "。",
        "你",
        "—",
        '"',
        "'",
        "(",
        "é",
    ]
    text = "".join(rng.choices(marks, k=rng.randrange(1, 800)))
    found = units(text, rng.choice(["en", "zh", "de"]), rng.randrange(5, 60))
    assert without_spaces("".join(unit.text for unit in found)) == without_spaces(text)


def test_what_one_generation_holds_is_left_as_it_is():
    text = "One. Two.\n\n  Three. "
    (unit,) = units(text, "en", 1000)
    assert (unit.text, unit.pause_s) == (text, 0)


def test_cuts_are_made_where_a_reader_pauses():
    text = "First sentence here. Second one.\nThird sentence there. Fourth one."
    found = units(text, "en", 34)
    assert [unit.text for unit in found] == [
        "First sentence here. Second one.",
        "Third sentence there. Fourth one.",
    ]
    assert [unit.pause_s for unit in found] == [PARAGRAPH_PAUSE_S, 0]
    found = units(text, "en", 22)
    assert [unit.pause_s for unit in found][:2] == [SENTENCE_PAUSE_S, PARAGRAPH_PAUSE_S]


def test_a_long_sentence_is_cut_behind_its_clauses():
    text = "When it rains, and it does, we stay at home; otherwise we go out for a walk."
    found = [unit.text for unit in units(text, "en", 45)]
    assert found == [
        "When it rains, and it does, we stay at home;",
        "otherwise we go out for a walk.",
    ]


def test_words_are_cut_only_where_they_are_too_long_themselves():
    text = "supercalifragilistic " + "x" * 100
    found = [unit.text for unit in units(text, "en", 40)]
    assert found[0] == "supercalifragilistic" or found[0].startswith("supercalifragilistic x")
    assert without_spaces("".join(found)) == without_spaces(text)


def test_a_syllable_counts_for_more_than_a_letter():
    assert estimated_frames("你好") > 2 * estimated_frames("ab")
    assert estimated_frames("12") > estimated_frames("ab")
    assert estimated_frames("") == 0


@pytest.mark.parametrize("size", [1, 1999, 2000, 2001, 30_000])
def test_a_line_of_any_length_is_put_together_again(size):
    line = ("你好。" * size)[:size]
    assert "".join(sentences(line, "zh")) == line
    assert len(list(sentences(line, "zh"))) == -(-size // 3)


@pytest.mark.parametrize("part", ["你好。", "a. ", "1", '"a. ', "(", "\n", "word ", ", "])
def test_the_work_grows_with_the_length_only(part):
    text = part * (200_000 // len(part))
    found = units(text, "en", 800)
    assert without_spaces("".join(unit.text for unit in found)) == without_spaces(text)
