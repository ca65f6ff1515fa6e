"""How a checkpoint says how it wants its text, and what becomes of a text then."""

import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import pytest

from serve_app.errors import CheckpointError, InvalidRequest
from serve_app.fakes import fake_card
from serve_app.http.speech.checks import checked_units, found_units
from serve_app.models.checkpoint.embedded import embedded_checkpoint
from serve_app.models.checkpoint.reading import TEXT_NEEDS, read_spec, read_text_needs
from serve_app.text.splitting import estimated_frames
from serve_app.types import TextNeeds

NEEDS = TextNeeds(200, 4, plain_words=True, letters=ascii_lowercase)
NEEDY = fake_card(languages=("auto", "english"), text_needs=NEEDS)


def spoken(text: str, options: Any = None) -> list[str]:
    return [unit.text for unit in checked_units(text, "auto", NEEDY, options)]


def test_the_embedded_voice_is_given_short_units_of_plain_words() -> None:
    assert read_spec(embedded_checkpoint()).text_needs == NEEDS


def test_the_releases_are_given_what_people_write(tmp_path: Path) -> None:
    assert read_text_needs(tmp_path) == TextNeeds()
    (unit,) = checked_units("# 5 *men* 🙂", "auto", fake_card(), None)
    assert unit.text == "# 5 *men* 🙂"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not valid JSON"),
        ("{}", "max_unit_frames is missing"),
        ({"max_unit_frames": "x"}, "must be an integer"),
        ({"max_unit_frames": 0, "max_frames_per_token": 4, "plain_words": True}, "at least 1"),
        ({"max_unit_frames": 9, "max_frames_per_token": 4, "plain_words": 1}, "true or false"),
        (
            {"max_unit_frames": 9, "max_frames_per_token": 4, "plain_words": True, "letters": 1},
            "must be a string",
        ),
    ],
)
def test_a_damaged_file_names_itself_and_the_key(tmp_path: Path, content: Any, reason: str) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / TEXT_NEEDS).write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=reason) as raised:
        read_text_needs(tmp_path)
    assert TEXT_NEEDS in str(raised.value)


def test_no_unit_is_longer_than_the_checkpoint_can_say() -> None:
    found = spoken("He had done this for forty years, and he had never once been late. " * 30)
    assert all(estimated_frames(unit) <= 200 for unit in found)
    assert len(found) > 9


def test_a_request_may_say_no_to_each() -> None:
    text = "# Say 5 **men** 🙂"
    assert spoken(text) == ["Say five men."]
    assert spoken(text, {"strip_markdown": False}) == ["Say five men."]
    assert spoken(text, {"normalize": False}) == ["Say 5 men"]
    nothing = {"normalize": False, "strip_markdown": False, "strip_emoji": False}
    assert spoken(text, nothing) == [text]


def test_a_part_of_a_text_loses_no_word_to_a_code_block_that_ends_in_it() -> None:
    part = "```\n\nThat is all there is to it."
    (unit,) = found_units(part, "text", "auto", NEEDY, None, 200, is_whole=False)
    assert unit.text == "That is all there is to it."


def test_a_file_need_not_say_which_letters(tmp_path: Path) -> None:
    old = {"max_unit_frames": 9, "max_frames_per_token": 4, "plain_words": True}
    (tmp_path / TEXT_NEEDS).write_text(json.dumps(old), encoding="utf-8")
    needs = read_text_needs(tmp_path)
    assert needs == TextNeeds(9, 4, plain_words=True)
    card = fake_card(languages=("auto", "english"), text_needs=needs)
    assert checked_units("你好。", "auto", card, None)


@pytest.mark.parametrize(
    "text",
    [
        "你好，世界。",
        "Привет, мир!",
        "今天是2026年11月27日。",
        "<speak>Ελλάδα</speak>",
        "안녕하세요",
    ],
)
@pytest.mark.parametrize("language", ["auto", "english"])
def test_text_in_other_letters_than_it_was_taught_is_refused(text: str, language: str) -> None:
    with pytest.raises(InvalidRequest, match=r"was not taught \('.*It speaks: english\.") as raised:
        checked_units(text, language, NEEDY, None)
    assert raised.value.param == "input"
    assert checked_units(text, "auto", fake_card(), None), "the releases read it"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Grüße aus Köln.", "Grusse aus Koln."),
        ("🙂", "slightly smiling face."),
        ("猫 means cat and costs $5.", "猫 means cat and costs five dollars."),
        ("2 + 2 = 4", "two plus two equals four."),
        ("Π", "pi."),
    ],
)
def test_what_has_a_few_of_them_or_none_is_spoken(text: str, said: str) -> None:
    assert spoken(text) == [said]


@pytest.mark.parametrize("text", ["...!?", "—", "( )", "*", "- - - -", "$", '"', "\u200d..."])
def test_stops_and_signs_alone_are_nothing_to_say_for_it(text: str) -> None:
    with pytest.raises(InvalidRequest, match="nothing that can be spoken") as raised:
        checked_units(text, "auto", NEEDY, None)
    assert (raised.value.param, raised.value.code) == ("input", "empty_string")
    assert [unit.text for unit in checked_units(text, "auto", fake_card(), None)], "theirs to read"
    units = spoken(f"{'One sentence is here. ' * 30}\n\n{text}\n\nYou.")
    assert all(any(map(str.isalnum, unit)) for unit in units)
