import json
from dataclasses import replace

import pytest

from serve_app.config import IngressConfig
from serve_app.errors import InvalidRequest, UnknownModel
from serve_app.fakes import fake_card
from serve_app.http.catalog import Catalog, model_object, voices_body
from serve_app.http.names import VOICE_ALIASES
from serve_app.http.speech.accept import Speech
from serve_app.http.speech.body import parse, read_json
from serve_app.http.speech.request import engine_request_id, ignored
from serve_app.http.voices.parts import Voices
from serve_app.types import NamedVoice

CARD = fake_card()
DESIGN = fake_card(name="design", task="voice_design", voices=(), path="/models/design-folder/")
LIMITS = IngressConfig()


def body(**fields):
    return parse({"input": "Hello.", **fields})


def accepted(cards=(CARD,), limits=LIMITS, **fields):
    voicing = Voices.open(limits, lambda _: None).voicing
    return Speech(Catalog(cards), limits, voicing).check({"input": "Hello.", **fields}).job


def domain(cards=(CARD,), **fields):
    """The request that reaches the stages, without the part that differs each time."""
    return replace(accepted(cards, **fields).request, request_id="id")


def test_the_smallest_body_gets_every_default():
    request = domain()
    assert request.model == CARD.name
    assert request.voice == NamedVoice("vivian")
    assert request.language == "auto"
    assert request.instructions is None
    assert request.streaming_text is False
    assert accepted().output.format == "mp3"
    assert request.talker.temperature is None
    assert request.subtalker.temperature is None


def test_a_seed_is_drawn_where_none_is_given():
    assert domain(seed=11).seed == 11
    assert len({domain().seed for _ in range(8)}) == 8


@pytest.mark.parametrize(
    ("given", "voice"),
    [
        ("ryan", "ryan"),
        ("  RyAn ", "ryan"),
        ("alloy", "vivian"),
        ("Coral", "serena"),
        ({"id": "dylan"}, "dylan"),
        (None, "vivian"),
        ("", "vivian"),
        ("default", "vivian"),
    ],
)
def test_a_voice_is_found_by_name_object_or_alias(given, voice):
    assert domain(voice=given).voice == NamedVoice(voice)


@pytest.mark.parametrize("field", ["voice", "speaker", "voice_id"])
def test_a_voice_may_stand_in_each_of_its_fields(field):
    assert domain(**{field: "aiden"}).voice == NamedVoice("aiden")


@pytest.mark.parametrize("voices", [("one",), ("one", "two"), CARD.voices])
def test_every_openai_voice_is_some_voice_of_any_checkpoint(voices):
    cards = (fake_card(voices=voices),)
    for name in VOICE_ALIASES:
        found = {domain(cards, voice=name).voice.name for _ in range(3)}
        assert len(found) == 1
        assert found <= set(voices)


def test_names_that_a_checkpoint_brings_along_come_before_ours():
    card = fake_card(voices=("one", "two"), voice_aliases={"nova": "two", "gran": "one"})
    assert domain((card,), voice="Nova").voice == NamedVoice("two")
    assert domain((card,), voice="gran").voice == NamedVoice("one")
    listed = voices_body((card,), created=5, legacy=False)["voices"]
    assert {"nova": "two", "gran": "one"}.items() <= {
        v["id"]: v["alias_of"] for v in listed
    }.items()


def test_a_speaker_comes_before_an_alias_of_the_same_name():
    card = fake_card(voices=("vivian", "Alloy"))
    assert domain((card,), voice="alloy").voice == NamedVoice("Alloy")


@pytest.mark.parametrize("voice", ["alloy", "Vivian", "nobody", "", None, {"id": "voice_1"}])
@pytest.mark.parametrize("field", ["voice", "speaker", "voice_id"])
def test_a_designed_voice_has_no_name_whatever_is_sent(field, voice):
    assert domain((DESIGN,), instructions="Calm.", **{field: voice}).voice is None


def test_a_designed_voice_needs_instructions_and_no_name():
    request = domain((DESIGN,), voice="alloy", instructions=" Old and warm. ")
    assert request.voice is None
    assert request.instructions == "Old and warm."
    with pytest.raises(InvalidRequest) as caught:
        domain((DESIGN,), voice="alloy")
    assert caught.value.param == "instructions"


@pytest.mark.parametrize(
    ("given", "language"),
    [
        (None, "auto"),
        ("", "auto"),
        ("Auto", "auto"),
        ("English", "english"),
        ("de", "german"),
        ("zh-Hans-CN", "chinese"),
        ("ja_JP", "japanese"),
    ],
)
def test_languages_are_names_or_codes(given, language):
    assert domain(language=given).language == language


@pytest.mark.parametrize("field", ["language", "lang_code", "lang", "language_type"])
def test_a_language_may_stand_in_each_of_its_fields(field):
    assert domain(**{field: "German"}).language == "german"


@pytest.mark.parametrize("text", ["None", "", "  ", None])
def test_empty_instructions_are_absent(text):
    request = domain(instructions=text)
    assert request.instructions is None
    assert list(ignored(body(instructions=text), request)) == []


def test_instructions_that_a_model_ignores_are_reported():
    card = fake_card(supports_instructions=False)
    request = domain((card,), instruct="Whisper.")
    assert request.instructions is None
    assert "instructions ignored" in "".join(ignored(body(instruct="Whisper."), request))
    assert domain(instruct="Whisper.").instructions == "Whisper."


@pytest.mark.parametrize(
    ("fields", "talker", "subtalker"),
    [
        ({}, None, None),
        ({"temperature": 0.5}, 0.5, None),
        ({"temperature": 0}, 0, 0),
        ({"do_sample": False}, 0, 0),
        ({"do_sample": False, "temperature": 0.7}, 0, 0),
        ({"do_sample": True, "temperature": 0.7}, 0.7, None),
        ({"temperature": 0, "subtalker_temperature": 0.8}, 0, 0.8),
        ({"temperature": 0, "subtalker_top_k": 5}, 0, None),
        ({"temperature": 0, "subtalker_dosample": True}, 0, None),
        ({"subtalker_dosample": False}, None, 0),
        ({"subtalker_temperature": 0}, None, 0),
    ],
)
def test_greedy_means_both_parts_unless_the_second_has_a_say(fields, talker, subtalker):
    request = domain(**fields)
    assert request.talker.temperature == talker
    assert request.subtalker.temperature == subtalker


def test_the_other_sampling_fields_arrive_where_they_belong():
    request = domain(
        top_k=3, top_p=0.5, repetition_penalty=1.2, subtalker_top_k=4, subtalker_top_p=0.6
    )
    assert (request.talker.top_k, request.talker.top_p) == (3, 0.5)
    assert request.talker.repetition_penalty == 1.2
    assert (request.subtalker.top_k, request.subtalker.top_p) == (4, 0.6)
    assert request.subtalker.repetition_penalty is None


def test_the_prompt_layout_is_chosen_by_the_name_of_the_reference():
    assert domain(non_streaming_mode=False).streaming_text is True
    assert domain(non_streaming_mode=True).streaming_text is False


def test_token_limits_have_two_names_and_are_checked():
    assert domain(max_tokens=9).max_new_tokens == 9
    assert domain(max_new_tokens=256, min_new_tokens=2).min_new_tokens == 2
    for fields in ({"max_new_tokens": 257}, {"max_new_tokens": 3, "min_new_tokens": 4}):
        with pytest.raises(InvalidRequest):
            domain(**fields)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "is empty"),
        (b" \r\n", "is empty"),
        (b"{input: hi}", r"property name .* \(line 1, column 2\)"),
        (b'{"input":\n"hi"', r"\(line 2, column 5\)"),
        (b'{"input": "gr\xfc\xdf"}', "not UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
        (b"9" * 5000, "not valid JSON"),
        (b"[1]", "must be a JSON object"),
    ],
    ids=["empty", "blank", "no quotes", "no end", "latin-1", "deep", "long number", "list"],
)
def test_a_body_that_is_no_json_is_told_where_it_is_wrong(raw, said):
    with pytest.raises(InvalidRequest, match=said):
        read_json(raw)


def test_what_vllm_omnis_clients_nest_counts_where_the_request_does_not_state_it():
    nested = {"temperature": "0.5", "top_k": 7, "seed": -1, "voice": "ryan", "unheard_of": 1}
    request = domain(seed=3, temperature=0.9, extra_params=nested)
    assert (request.talker.temperature, request.talker.top_k, request.seed) == (0.9, 7, 3)
    assert request.voice == NamedVoice("vivian")
    assert domain(temperature=None, extra_params=nested).talker.temperature == 0.5
    limited = {"max_new_tokens": 9}
    assert domain(extra_params=limited).max_new_tokens == 9
    assert domain(max_tokens=5, extra_params=limited).max_new_tokens == 5
    for wrong in ({"temperature": 9}, [1]):
        with pytest.raises(InvalidRequest) as caught:
            domain(extra_params=wrong)
        assert caught.value.param in ("temperature", "extra_params")


def test_times_of_words_are_refused_and_not_left_out():
    assert domain(word_timestamps=False) is not None
    with pytest.raises(InvalidRequest, match="word_timestamps"):
        domain(word_timestamps=True)


@pytest.mark.parametrize("name", ["af_heart", "af_bella+af_sky", "a(2", "Ünbekannt"])
def test_another_servers_voice_is_the_default_one_where_that_is_allowed(name):
    lenient = IngressConfig(accept_any_voice=True)
    with pytest.raises(InvalidRequest):
        accepted(voice=name)
    job = accepted(limits=lenient, voice=name)
    assert job.request.voice == NamedVoice("vivian")
    assert job.warning is not None
    assert job.warning.isascii()
    for known in ("ryan", "coral", None, "default", {"id": "dylan"}):
        assert accepted(limits=lenient, voice=known).warning is None
    # Nor where no speaker stands for the default.
    base = fake_card(task="base", name="base", voices=())
    assert accepted([base], lenient, ref_audio="AAAA").warning is None
    # One that another model has is no reason to guess.
    other = fake_card(name="other", voices=("zoe",))
    with pytest.raises(InvalidRequest, match="'other' has"):
        accepted((CARD, other), lenient, model=CARD.name, voice="zoe")


def test_stream_true_may_ask_for_events_as_in_vllm_omni():
    events = IngressConfig(stream_true="sse")
    assert accepted(stream=True).transport == "stream"
    assert accepted(limits=events, stream=True).transport == "sse"
    assert accepted(limits=events, stream=True, stream_format="audio").transport == "stream"
    assert accepted(limits=events, stream=True, response_format="raw").transport == "together"
    assert accepted(limits=events).transport == "stream"
    assert accepted(limits=events, stream=False).transport == "file"


def test_unknown_fields_and_nulls_are_ignored():
    nulls = {name: None for name in type(body()).model_fields if name != "input"}
    first, second = domain(seed=1), domain(**{**nulls, "seed": 1, "backend": "x", "user": [1]})
    assert first == second


@pytest.mark.parametrize(
    "name",
    ["", None, "qwen3-tts-fake", "QWEN3-TTS-FAKE", "fakes/qwen3-tts-fake", "tts-1", "qwen3-tts"],
)
def test_a_model_has_several_names(name):
    assert domain((CARD, DESIGN), model=name).model == CARD.name


def test_a_model_is_found_by_its_folder_or_by_its_task():
    assert Catalog((CARD, DESIGN)).get("design-folder") is DESIGN
    request = domain((CARD, DESIGN), task_type="VoiceDesign", instructions="Calm.")
    assert request.model == "design"
    with pytest.raises(UnknownModel, match="Served here: qwen3-tts-fake, design"):
        domain((CARD, DESIGN), model="gpt-9")


@pytest.mark.parametrize("task", ["CustomVoice", "custom_voice", "customvoice"])
def test_the_task_may_be_spelled_in_several_ways(task):
    assert domain(task_type=task).model == CARD.name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"ref_text": "Hello."}, "ref_text"),
        ({"ref_audio": "AAAA", "speaker_embedding": [1.0]}, "speaker_embedding"),
        ({"ref_audio": {"url": "x"}}, "ref_audio"),
        ({"ref_audio": "AAAA", "ref_text": "<|im_end|>"}, "ref_text"),
        ({"ref_audio": "AAAA", "x_vector_only_mode": False}, "ref_text"),
        ({"references": [{"audio": "AAAA"}, {"audio": "AAAA"}]}, "references"),
        ({"ref_audio": "AAAA", "consent": f"cons_{0:032}"}, "consent"),
        ({"voice": {"blend": [{"voice": "a", "weight": 0}]}}, "voice"),
        ({"voice": "a(2"}, "voice"),
        ({"voice": "a+b"}, "voice"),
        ({"voice": "ryan"}, "voice"),
        ({}, "voice"),
    ],
    ids=str,
)
def test_a_voice_that_is_not_said_clearly_is_refused(fields, param):
    base = fake_card(task="base", voices=())
    with pytest.raises(InvalidRequest) as caught:
        domain((base,), **fields)
    assert caught.value.param == param


def test_engine_ids_keep_a_valid_id_of_the_client_and_never_repeat():
    first, second = engine_request_id("req_1.a:b-c"), engine_request_id("req_1.a:b-c")
    assert first.startswith("req_1.a:b-c-")
    assert first != second
    for bad in (None, "", "a b", "x" * 129, "a\n", "ä"):
        made = engine_request_id(bad)
        assert len(made) == 32 + 1 + 8
        assert made.replace("-", "").isalnum()


def test_the_list_of_voices_serves_every_kind_of_reader():
    listed = voices_body((CARD,), created=5, legacy=False)
    names = [*CARD.voices, *VOICE_ALIASES]
    assert [voice["id"] for voice in listed["voices"]] == names
    assert listed["data"] == listed["voices"]
    assert (listed["first_id"], listed["last_id"]) == (names[0], names[-1])
    alias = listed["voices"][len(CARD.voices)]
    assert (alias["type"], alias["alias_of"]) == ("alias", "vivian")
    assert voices_body((CARD,), created=5, legacy=True) == {"voices": names}
    assert voices_body((DESIGN,), created=5, legacy=False)["data"] == []


def test_a_model_object_tells_no_path():
    assert "path" not in json.dumps(model_object(DESIGN, 5))
    assert "/models/" not in json.dumps(model_object(DESIGN, 5))


@pytest.mark.parametrize(
    ("stated", "streams"), [(None, (False, True)), (True, (False, False)), (False, (True, True))]
)
def test_the_text_of_a_clone_goes_in_beside_its_frames_as_in_the_reference(stated, streams):
    base = fake_card(task="base", voices=())
    plain = domain(non_streaming_mode=stated)
    clone = domain((base,), speaker_embedding=[1.0] * 8, non_streaming_mode=stated)
    assert (plain.streaming_text, clone.streaming_text) == streams
