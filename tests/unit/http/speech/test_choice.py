"""Which of several served models answers a request."""

import pytest

from serve_app.errors import InvalidRequest, ModelStarting, StageUnavailable, UnknownModel
from serve_app.fakes import fake_card
from serve_app.http.catalog import Catalog
from serve_app.http.speech.body import parse
from serve_app.http.speech.choice import find_model

CUSTOM = fake_card(name="custom", path="/models/custom-folder")
SMALL = fake_card(name="small", voices=("otto",))
DESIGN = fake_card(name="design", task="voice_design", voices=())
BASE = fake_card(name="base", task="base", voices=())
ALL = (CUSTOM, SMALL, DESIGN, BASE)


def chosen(cards=ALL, **fields):
    card, _ = find_model(
        parse({"input": "Hello.", **fields}), Catalog(cards), {"mine"}.__contains__
    )
    return card.name


@pytest.mark.parametrize("model", [None, " ", "tts-1", "gpt-4o-mini-tts", "tts-1-es"])
@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "custom"),
        ({"voice": "alloy"}, "custom"),
        ({"voice": "otto"}, "small"),
        ({"voice": "nobody"}, "custom"),
        ({"voice": "alloy", "instructions": "Cheerful."}, "custom"),
        ({"instructions": "An old man."}, "design"),
        ({"voice": "default", "instructions": "An old man."}, "design"),
        ({"instructions": "None"}, "custom"),
        ({"voice": "mine"}, "base"),
        ({"voice": "mine", "instructions": "Cheerful."}, "base"),
        ({"ref_audio": "data:audio/wav;base64,AA=="}, "base"),
        ({"speaker_embedding": [0.0]}, "base"),
        ({"task_type": "VoiceDesign"}, "design"),
        ({"task_type": "base", "voice": "alloy"}, "base"),
    ],
)
def test_without_a_model_the_request_says_what_it_needs(model, fields, name):
    assert chosen(model=model, **fields) == name


@pytest.mark.parametrize("order", [ALL, ALL[::-1]])
def test_the_default_answers_what_several_can(order):
    assert chosen(order, voice="alloy") == next(c.name for c in order if c in (CUSTOM, SMALL))
    assert chosen(order) == order[0].name
    assert chosen(order, voice="vivian") == "custom"


def test_a_server_of_one_model_has_it_answer_everything():
    fields = ({"instructions": "Calm."}, {"voice": "mine"}, {"ref_audio": "x"}, {"voice": "nobody"})
    for card in ALL:
        assert {chosen((card,), **one) for one in fields} == {card.name}


@pytest.mark.parametrize(
    ("model", "fields", "param", "reason"),
    [
        ("custom", {"ref_audio": "x"}, "model", "'custom' does not clone voices; 'base' does"),
        ("design", {"voice": "mine"}, "model", "'design' does not clone voices; 'base' does"),
        ("small", {"voice": "vivian"}, "voice", "'small' has no voice 'vivian'; 'custom' has"),
        ("base", {"voice": "alloy"}, "voice", "no voice 'alloy'; 'custom' and 'small' have"),
        ("design", {"voice": "alloy"}, "voice", "no voice 'alloy'; 'custom' and 'small' have"),
        ("base", {"instructions": "Calm."}, "model", "from descriptions; 'design' does"),
        ("custom", {"task_type": "Base"}, "task_type", "not 'Base'; 'base' does"),
    ],
)
def test_a_named_model_that_cannot_says_which_one_can(model, fields, param, reason):
    with pytest.raises(InvalidRequest, match=reason) as caught:
        chosen(model=model, **fields)
    assert caught.value.param == param


def test_a_named_model_that_can_is_not_second_guessed():
    assert chosen(model="custom", instructions="Calm.") == "custom"
    assert chosen(model="custom-folder", voice="alloy") == "custom"
    assert chosen(model="design", voice="alloy", instructions="Calm.") == "design"
    assert chosen(model="small") == "small"


def test_a_task_that_nothing_served_does_is_refused():
    with pytest.raises(InvalidRequest, match=r"there is 'custom' \(CustomVoice\)"):
        chosen((CUSTOM,), task_type="VoiceDesign")


def test_a_model_that_starts_is_waited_for_and_an_unknown_one_is_not():
    catalog = Catalog((CUSTOM,))
    catalog.expect({"later": frozenset({"later", "/models/later-folder", "later-folder"})})

    def choose(**fields):
        return find_model(parse({"input": "Hello.", **fields}), catalog)

    for name in ("later", "Later-Folder", "later-es"):
        with pytest.raises(ModelStarting, match="'later' is still starting"):
            choose(model=name)
    for fields in ({"task_type": "Base"}, {"ref_audio": "x"}):
        with pytest.raises(ModelStarting, match="later"):
            choose(**fields)
    with pytest.raises(UnknownModel, match="Served here: custom; starting: later"):
        choose(model="never")
    assert choose(voice="alloy")[0] is CUSTOM
    catalog.add(fake_card(name="later", task="base"))
    catalog.expect({})
    assert choose(ref_audio="x")[0].name == "later"


def test_before_any_model_is_there_every_request_waits():
    catalog = Catalog()
    for name in (None, "tts-1", "never"):
        with pytest.raises(StageUnavailable):
            find_model(parse({"input": "Hello.", "model": name}), catalog)
    catalog.expect({"later": frozenset({"later"})})
    with pytest.raises(ModelStarting):
        find_model(parse({"input": "Hello."}), catalog)


def test_the_default_may_be_stated_before_it_comes():
    catalog = Catalog((CUSTOM, SMALL))
    catalog.prefer("Design")
    assert catalog.default is CUSTOM
    catalog.add(DESIGN)
    assert catalog.default is DESIGN
    catalog.remove("design")
    assert catalog.default is CUSTOM
    catalog.prefer(None)
    assert [card.name for card in catalog.cards] == ["custom", "small"]


def test_ranks_decide_the_order_whatever_comes_first():
    catalog = Catalog()
    for card, rank in ((BASE, (2,)), (DESIGN, (1,)), (CUSTOM, (0, "b")), (SMALL, (0, "a"))):
        catalog.add(card, rank)
    assert [card.name for card in catalog.cards] == ["small", "custom", "design", "base"]
