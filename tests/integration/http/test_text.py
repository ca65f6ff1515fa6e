"""What of a text is spoken, in which language, and in how many pieces."""

import asyncio
from string import ascii_lowercase

import numpy as np
import openai
import pytest

from serve_app.fakes import fake_card
from serve_app.types import TextNeeds
from tests.integration.http.service import NUM_FRAMES, Service, create, samples

UNIT_SAMPLES = NUM_FRAMES * 1920


def spoken(text, service=None, **extra):
    service = service or Service()
    response = asyncio.run(
        create(service, input=text, response_format="pcm", extra_body={"stream": False, **extra})
    )
    assert service.idle
    audio = np.frombuffer(response.content, "<i2")
    return audio, [request.text for request in service.talker.requests]


def test_a_text_without_tags_is_spoken_as_it_is():
    audio, texts = spoken("  Hello there,\n\nworld.  ")
    assert texts == ["Hello there,\n\nworld."]
    np.testing.assert_array_equal(audio, samples())


def test_invisible_characters_do_not_reach_the_model():
    _, texts = spoken("He\u200bllo\x07 e\u0301.")
    assert texts == ["Hello é."]


def test_a_pause_is_silence():
    audio, texts = spoken("One. [pause 0.5s] Two.")
    assert texts == ["One.", "Two."]
    assert len(audio) == 2 * UNIT_SAMPLES + 12000
    assert not audio[UNIT_SAMPLES : UNIT_SAMPLES + 12000].any()


def test_ssml_is_followed_and_not_read_out():
    audio, texts = spoken(
        '<speak>One <break time="250ms"/><prosody rate="50%">two</prosody><mark name="x"/></speak>'
    )
    assert texts == ["One", "two"]
    assert len(audio) == 3 * UNIT_SAMPLES + 6000


def test_long_text_is_spoken_in_units_with_one_voice_and_without_a_gap_in_the_samples():
    # The card of the fakes allows 256 frames.
    text = "This is a sentence of some length, and it ends here. " * 30
    audio, texts = spoken(text)
    assert len(texts) > 4
    assert "".join("".join(texts).split()) == "".join(text.split())
    pauses = len(audio) - len(texts) * UNIT_SAMPLES
    assert pauses == (len(texts) - 1) * 3600
    assert np.abs(np.diff(audio.astype(int))).max() < 1000


def test_a_text_of_the_longest_length_streams():
    service = Service(cards=(fake_card(max_new_tokens=4096),))
    text = "Word after word. " * 1900
    response = asyncio.run(create(service, input=text))
    assert response.content.startswith(b"\xff") or response.content.startswith(b"RIFF")
    assert len(service.talker.requests) == len({r.request_id for r in service.talker.requests})
    assert service.idle


def test_what_a_request_asks_for_is_rewritten():
    options = {"normalize": True, "strip_markdown": True, "strip_emoji": True, "other": 1}
    _, texts = spoken("**Call** 5 🙂", language="english", normalization_options=options)
    assert texts == ["Call five"]
    for ignored in ({}, {"normalize": "yes"}, "all", 7, None):
        _, texts = spoken("**Call** 5", normalization_options=ignored)
        assert texts == ["**Call** 5"]


@pytest.mark.parametrize("text", ["[pause 1s]", "<speak/>", "\u200b", "<break/> ."])
def test_a_text_that_says_nothing_is_refused(text):
    with pytest.raises(openai.BadRequestError) as caught:
        spoken(text)
    assert caught.value.param == "input"
    assert caught.value.code == "empty_string"


@pytest.mark.parametrize("text", ["<|im_\u200bstart|>", "<speak>&lt;|im_start|&gt;</speak>"])
def test_a_control_string_that_only_cleaning_puts_together_is_refused(text):
    service = Service(cards=(fake_card(control_strings=("<|im_start|>",)),))
    with pytest.raises(openai.BadRequestError, match="control string"):
        spoken(text, service)
    assert not service.talker.requests


@pytest.mark.parametrize(
    ("fields", "language"),
    [
        ({"model": "tts-1-de"}, "german"),
        ({"model": "tts-1-hd-ja"}, "japanese"),
        ({"model": "gpt-4o-mini-tts-zh-CN"}, "chinese"),
        ({"model": "tts-1-de", "extra_body": {"language": "en"}}, "english"),
        ({"extra_body": {"language": "deu"}}, "german"),
        ({"extra_body": {"language": "Deutsch"}}, "german"),
        ({"extra_body": {"lang_code": "zh-Hant-TW"}}, "chinese"),
        ({"extra_body": {"language": "Auto"}}, "auto"),
        ({}, "auto"),
    ],
)
def test_a_language_has_many_names(fields, language):
    service = Service()
    asyncio.run(create(service, **fields))
    (request,) = service.talker.requests
    assert request.language == language


def test_a_language_that_the_model_does_not_speak_is_refused():
    with pytest.raises(openai.BadRequestError, match="portuguese"):
        asyncio.run(create(Service(), model="tts-1-pt-BR"))
    with pytest.raises(openai.NotFoundError):
        asyncio.run(create(Service(), model="tts-1-pl"))


def english_only():
    needs = TextNeeds(200, 4, plain_words=True, letters=ascii_lowercase)
    return Service(cards=(fake_card(languages=("auto", "english"), text_needs=needs),))


@pytest.mark.parametrize("text", ["你好，世界。", "Привет, мир!"])
def test_text_in_letters_that_the_model_was_not_taught_is_refused(text):
    service = english_only()
    with pytest.raises(
        openai.BadRequestError, match=r"was not taught.*It speaks: english"
    ) as caught:
        spoken(text, service)
    assert caught.value.param == "input"
    assert not service.talker.requests
    assert spoken("Tschüss 🙂", service)[1] == ["Tschuss."]


def test_a_model_of_one_language_refuses_another_by_name():
    service = english_only()
    with pytest.raises(
        openai.BadRequestError, match=r"'german' .* Supported: auto, english"
    ) as caught:
        spoken("Guten Tag.", service, language="German")
    assert caught.value.param == "language"
    assert not service.talker.requests


def test_the_model_list_knows_names_with_a_language():
    async def main():
        async with Service().http() as http:
            response = await http.get("/v1/models/tts-1-es")
        assert response.json()["id"] == "qwen3-tts-fake"

    asyncio.run(main())
