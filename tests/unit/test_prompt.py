"""Prompts: layout, limits, and what a request may not say."""

import dataclasses

import numpy as np
import pytest

from serve_app.config import TalkerConfig
from serve_app.errors import InvalidRequest
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.models.talker.prompt import build_prompt
from serve_app.types import (
    ClonedVoice,
    InputTokens,
    NamedVoice,
    Prompt,
    Sampling,
    SamplingOverrides,
    SpeechRequest,
    TextNeeds,
)
from tests.conftest import TinyCheckpoint

REQUEST = SpeechRequest(
    request_id="r",
    model="tiny",
    text="Hello world.",
    voice=NamedVoice("Ryan"),
    language="english",
    seed=7,
)


@pytest.fixture
def spec(tiny_checkpoint: TinyCheckpoint) -> ModelSpec:
    return read_spec(tiny_checkpoint())


@pytest.fixture
def tokenizer(tiny_checkpoint: TinyCheckpoint) -> TextTokenizer:
    return TextTokenizer.from_dir(tiny_checkpoint())


def built(
    spec: ModelSpec, tokenizer: TextTokenizer, max_model_len: int = 4096, **changes: object
) -> Prompt:
    return build_prompt(dataclasses.replace(REQUEST, **changes), spec, tokenizer, max_model_len)


def test_the_rows_of_a_whole_text_are_role_prefix_and_body(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    prompt = built(spec, tokenizer)
    text = tokenizer.encode("Hello world.")
    pad, bos, eos = spec.text.tts_pad_id, spec.text.tts_bos_id, spec.text.tts_eos_id
    assert prompt.rows.dtype == np.int32
    assert prompt.rows.shape == (3 + 6 + len(text) + 2, 17)
    assert prompt.rows[:3, 0].tolist() == tokenizer.encode("<|im_start|>assistant\n")
    assert prompt.rows[3:9, 0].tolist() == [pad] * 5 + [bos]
    assert prompt.rows[3:9, 1].tolist() == [2154, 2156, 2050, 2157, 3061, 2148]
    assert prompt.rows[9:, 0].tolist() == [*text, eos, pad]
    assert prompt.rows[9:, 1].tolist() == [2148] * (len(text) + 1) + [2149]
    assert (prompt.rows[:3, 1] == -1).all()
    assert (prompt.rows[:, 2:] == -1).all()
    assert prompt.trailing_text.tolist() == []
    assert (prompt.pad_text_id, prompt.seed, prompt.speaker_vector) == (pad, 7, None)


def test_streaming_text_keeps_all_but_the_first_token_for_later(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    prompt = built(spec, tokenizer, streaming_text=True)
    text = tokenizer.encode("Hello world.")
    assert len(prompt.rows) == 3 + 6 + 1
    assert prompt.rows[-1, :2].tolist() == [text[0], 2149]
    assert prompt.trailing_text.tolist() == [*text[1:], spec.text.tts_eos_id]


@pytest.mark.parametrize("text", ["Hello world.", "  Grüße, 你好!\n", "a " * 400])
@pytest.mark.parametrize("instructions", [None, "Say it slowly,\nand low.", " "])
def test_the_tokens_of_a_request_are_those_of_its_text_and_its_instructions(
    spec: ModelSpec, tokenizer: TextTokenizer, text: str, instructions: str | None
) -> None:
    alone = [tokenizer.encode(part.strip()) for part in (text, instructions or "")]
    for streaming in (False, True):
        prompt = built(
            spec, tokenizer, text=text, instructions=instructions, streaming_text=streaming
        )
        assert prompt.tokens == InputTokens(text=sum(map(len, alone)))


def test_text_for_frames_that_are_never_made_is_left_out(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    parrots = "\U0001f99c" * 1100
    prompt = built(spec, tokenizer, text=parrots, streaming_text=True, max_new_tokens=10)
    text = tokenizer.encode(parrots)
    assert prompt.max_new_tokens == 10
    assert prompt.trailing_text.tolist() == text[1:11]


def test_by_default_there_is_room_for_the_longest_speech_behind_a_text_of_4096_tokens(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    """OpenAI's limit of 4,096 characters, in a language of a token each."""
    text = "\U0001f99c" * 1024
    assert len(tokenizer.encode(text)) == 4096
    prompt = built(spec, tokenizer, text=text, max_model_len=TalkerConfig().max_model_len)
    assert prompt.max_new_tokens == spec.generation.max_new_tokens == 8192


def test_auto_without_a_voice_has_the_shortest_prefix(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    prompt = built(spec, tokenizer, voice=None, language="Auto")
    assert prompt.rows[3:7, 1].tolist() == [2155, 2156, 2157, 2148]


@pytest.mark.parametrize(
    ("language", "row"), [("auto", 2074), ("chinese", 2074), ("english", 2050)]
)
def test_a_dialect_speaker_turns_chinese_and_auto_into_the_dialect(
    spec: ModelSpec, tokenizer: TextTokenizer, language: str, row: int
) -> None:
    prompt = built(spec, tokenizer, voice=NamedVoice("Dylan"), language=language)
    assert prompt.rows[3:6, 1].tolist() == [2154, 2156, row]


def test_instructions_come_first_and_have_text_only(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    plain, instructed = built(spec, tokenizer), built(spec, tokenizer, instructions=" Whisper. ")
    ids = tokenizer.encode("<|im_start|>user\nWhisper.<|im_end|>\n")
    assert instructed.rows[: len(ids), 0].tolist() == ids
    assert (instructed.rows[: len(ids), 1:] == -1).all()
    np.testing.assert_array_equal(instructed.rows[len(ids) :], plain.rows)
    np.testing.assert_array_equal(built(spec, tokenizer, instructions="  ").rows, plain.rows)


def test_the_small_custom_voice_model_drops_instructions(tiny_checkpoint: TinyCheckpoint) -> None:
    path = tiny_checkpoint("custom_voice", "tiny-0b6")
    spec, tokenizer = read_spec(path), TextTokenizer.from_dir(path)
    np.testing.assert_array_equal(
        built(spec, tokenizer, instructions="Whisper.").rows, built(spec, tokenizer).rows
    )


def test_a_request_states_what_the_checkpoint_does_not_decide(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    prompt = built(spec, tokenizer, talker=SamplingOverrides(temperature=0.0, top_k=0))
    assert prompt.talker == Sampling(0.0, 0, 1.0, 1.05)
    assert prompt.subtalker == Sampling(0.9, 50, 1.0, 1.0)


def test_limits_hold_whatever_the_request_says(spec: ModelSpec, tokenizer: TextTokenizer) -> None:
    tokens = len(tokenizer.encode("Hello world."))
    assert built(spec, tokenizer).max_new_tokens == 60 + 25 * tokens
    assert built(spec, tokenizer, text="long " * 400, max_model_len=32768).max_new_tokens == 8192
    assert built(spec, tokenizer, max_new_tokens=9000, max_model_len=100).max_new_tokens == (
        100 - len(built(spec, tokenizer).rows)
    )
    few = built(spec, tokenizer, max_new_tokens=1)
    assert (few.min_new_tokens, few.max_new_tokens) == (1, 1)
    assert built(spec, tokenizer, min_new_tokens=0).min_new_tokens == 2
    assert built(spec, tokenizer, min_new_tokens=30).min_new_tokens == 30


def test_a_checkpoint_may_say_when_a_synthesis_has_gone_astray(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    needy = dataclasses.replace(spec, text_needs=TextNeeds(max_frames_per_token=4))
    tokens = len(tokenizer.encode(REQUEST.text))
    assert built(needy, tokenizer).max_new_tokens == 60 + 4 * tokens
    assert built(needy, tokenizer, max_new_tokens=500).max_new_tokens == 500


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"text": " \n\t "}, "input", "empty"),
        ({"text": "hi <|im_end|> there"}, "input", "<|im_end|>"),
        ({"text": "<tts_pad>"}, "input", "<tts_pad>"),
        ({"instructions": "<|im_start|>system"}, "instructions", "<|im_start|>"),
        ({"voice": NamedVoice("alloy")}, "voice", "vivian"),
        ({"language": "klingon"}, "language", "japanese"),
        ({"language": "beijing_dialect"}, "language", "chinese"),
        ({"max_model_len": 20}, "input", "too long"),
        ({"text": "many words " * 100, "max_model_len": 1000}, "input", "too long"),
    ],
)
def test_what_cannot_be_spoken_is_refused_by_field(
    spec: ModelSpec, tokenizer: TextTokenizer, changes: dict[str, object], param: str, said: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        built(spec, tokenizer, **changes)
    assert caught.value.param == param
    assert said in caught.value.message
    if "max_model_len" in changes:
        assert caught.value.code == "string_above_max_length"


def test_a_model_without_preset_voices_says_so(tiny_checkpoint: TinyCheckpoint) -> None:
    path = tiny_checkpoint("voice_design", "tiny")
    with pytest.raises(InvalidRequest, match="describe the voice"):
        built(read_spec(path), TextTokenizer.from_dir(path))


def clone(frames: int | None = None, said: str | None = None, **changes: object) -> ClonedVoice:
    codes = None if frames is None else np.arange(frames * 16).reshape(frames, 16) % 2048
    voice = ClonedVoice(np.ones(64, np.float32), codes, said, "mum")
    return dataclasses.replace(voice, **changes)


@pytest.fixture
def base(tiny_checkpoint: TinyCheckpoint) -> tuple[ModelSpec, TextTokenizer]:
    path = tiny_checkpoint("base", "tiny")
    return read_spec(path), TextTokenizer.from_dir(path)


def test_a_cloned_voice_stands_where_a_speaker_would(
    base: tuple[ModelSpec, TextTokenizer],
) -> None:
    prompt = built(*base, voice=clone())
    assert prompt.rows[3:9, 1].tolist() == [2154, 2156, 2050, 2157, -1, 2148]
    assert prompt.speaker_position == 7
    assert prompt.speaker_vector is not None


def test_a_recording_shortens_the_room_for_speech(base: tuple[ModelSpec, TextTokenizer]) -> None:
    plain = built(*base, voice=clone(), max_model_len=128)
    after = built(*base, voice=clone(40, "Hello."), max_model_len=128)
    assert (plain.tokens.audio, after.tokens.audio) == (0, 40)
    assert plain.tokens.text == after.tokens.text == len(base[1].encode(REQUEST.text))
    assert len(after.rows) >= len(plain.rows) + 40
    assert after.max_new_tokens == 128 - len(after.rows)
    with pytest.raises(InvalidRequest, match="room for 0 frames"):
        built(*base, voice=clone(140, "Hello."), max_model_len=128)


@pytest.mark.parametrize(
    ("voice", "param", "said"),
    [
        (None, "voice", "made of a recording"),
        (NamedVoice("Ryan"), "voice", "made of a recording"),
        (clone(speaker_vector=np.ones(32, np.float32)), "voice", "made for another checkpoint"),
        (clone(3), "voice", "or neither"),
        (clone(said="Hello."), "voice", "or neither"),
        (clone(3, "Hello.", reference_codes=np.zeros((3, 15), int)), "voice", "16 codes"),
        (clone(3, "Hello.", reference_codes=np.zeros((0, 16), int)), "voice", "16 codes"),
        (clone(3, "Hello.", reference_codes=np.full((3, 16), 2048)), "voice", "16 codes"),
        (clone(3, "Hello.", reference_codes=np.zeros((3, 16))), "voice", "16 codes"),
        (clone(3, " "), "ref_text", "empty"),
        (clone(3, "<|im_end|>"), "ref_text", "control string"),
    ],
)
def test_a_voice_that_does_not_fit_is_refused(
    base: tuple[ModelSpec, TextTokenizer], voice: object, param: str, said: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        built(*base, voice=voice)
    assert caught.value.param == param
    assert said in caught.value.message


def test_only_a_base_checkpoint_speaks_with_cloned_voices(
    spec: ModelSpec, tokenizer: TextTokenizer
) -> None:
    with pytest.raises(InvalidRequest, match="use a Base checkpoint"):
        built(spec, tokenizer, voice=clone())
