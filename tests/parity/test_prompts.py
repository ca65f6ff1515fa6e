"""Our prompts are the reference's, row by row; it loads the checkpoints we write."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import linear, silu

from serve_app.models.checkpoint.files import MODEL_WEIGHTS, SPEECH_WEIGHTS, open_checkpoint
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.models.talker.prompt import build_prompt
from serve_app.types import NamedVoice, Prompt, SpeechRequest
from tests.conftest import TinyCheckpoint
from tests.parity.reference import Reference, ReferenceRun

# fp32: the reference projects the rows of a prompt together, we project the whole table at once,
# and the shape of a product decides the order of its sums.
TOLERANCE = 1e-5

TEXTS = {
    "english": "Hello world, how are you today?",
    "chinese": "你好，世界。今天的天气很好。",
    "german": "Guten Morgen! Wie geht's?",
    "japanese": "こんにちは、世界。",
    "russian": "Доброе утро, McDonald 42!",
    "korean": "안녕하세요 🎉",
    "auto": "one\n\ntwo  three",
}


@cache
def reference(path: Path) -> Reference:
    return Reference(path)


@cache
def text_table(path: Path) -> torch.Tensor:
    talker = open_checkpoint(path).tensors("talker.")
    weights = {
        name: tensor.float()
        for name, tensor in talker.items()
        if name.startswith(("model.t", "text"))
    }
    first = linear(
        weights["model.text_embedding.weight"],
        weights["text_projection.linear_fc1.weight"],
        weights["text_projection.linear_fc1.bias"],
    )
    return linear(
        silu(first),
        weights["text_projection.linear_fc2.weight"],
        weights["text_projection.linear_fc2.bias"],
    )


def our_prompt(path: Path, voice: str | None, **fields: object) -> Prompt:
    speaker = None if voice is None else NamedVoice(voice)
    request = SpeechRequest(request_id="r", model="tiny", voice=speaker, seed=0, **fields)  # pyright: ignore[reportArgumentType]
    return build_prompt(
        request, open_checkpoint(path).spec, TextTokenizer.from_dir(path), max_model_len=4096
    )


def assert_same_rows(path: Path, prompt: Prompt, run: ReferenceRun) -> None:
    texts = text_table(path)
    codes = open_checkpoint(path).tensors("talker.model.codec_embedding.")["weight"].float()
    assert (prompt.rows[:, 2:] == -1).all()
    embeds = np.zeros((len(prompt.rows), codes.shape[1]), dtype=np.float32)
    for table, ids in ((texts, prompt.rows[:, 0]), (codes, prompt.rows[:, 1])):
        present = ids >= 0
        embeds[present] += table[torch.from_numpy(ids[present]).long()].numpy()
    assert embeds.shape == run.prompt_embeds.shape
    np.testing.assert_allclose(embeds, run.prompt_embeds, rtol=0, atol=TOLERANCE)
    trailing = prompt.trailing_text if len(prompt.trailing_text) else np.array([prompt.pad_text_id])
    np.testing.assert_allclose(
        texts[torch.from_numpy(trailing).long()].numpy(), run.trailing, rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("streaming_text", [False, True], ids=["whole-text", "streaming-text"])
@pytest.mark.parametrize(
    "instructions", [None, "Speak slowly, like a calm narrator."], ids=["plain", "instructed"]
)
@pytest.mark.parametrize("language", TEXTS)
@pytest.mark.parametrize(
    ("variant", "size", "voice"),
    [
        ("custom_voice", "tiny", "Ryan"),
        ("custom_voice", "tiny-0b6", "Ono_Anna"),
        ("custom_voice", "tiny", None),
        ("voice_design", "tiny", None),
        ("voice_design", "tiny-0b6", None),
    ],
)
def test_prompt_and_trailing_rows_are_those_of_the_reference(
    tiny_checkpoint: TinyCheckpoint,
    variant: str,
    size: str,
    voice: str | None,
    language: str,
    instructions: str | None,
    streaming_text: bool,
) -> None:
    path = tiny_checkpoint(variant, size)
    text = TEXTS[language]
    run = reference(path).speak(
        text,
        speaker=voice,
        language=language.capitalize(),
        instruct=instructions,
        non_streaming_mode=not streaming_text,
        max_new_tokens=2,
    )
    prompt = our_prompt(
        path,
        text=text,
        voice=voice,
        language=language,
        instructions=instructions,
        streaming_text=streaming_text,
    )
    assert_same_rows(path, prompt, run)


@pytest.mark.parametrize("size", ["tiny", "tiny-0b6"])
@pytest.mark.parametrize("voice", ["Dylan", "Eric"])
@pytest.mark.parametrize("language", ["auto", "chinese", "english"])
def test_dialect_speakers_change_the_language_row_as_in_the_reference(
    tiny_checkpoint: TinyCheckpoint, size: str, voice: str, language: str
) -> None:
    path = tiny_checkpoint("custom_voice", size)
    text = "今天的天气很好。"
    run = reference(path).speak(text, speaker=voice, language=language, max_new_tokens=2)
    assert_same_rows(path, our_prompt(path, text=text, voice=voice, language=language), run)


@pytest.mark.parametrize(
    "text",
    [
        "Hello World, McDonald and YouTube: iPhone",
        "你好，世界。今日はとても良い天気。안녕하세요",
        "1234567890 3.14 １２３ ½",
        "🎉👩‍👩‍👧 café cafe\u0301 ﬁ",
        "one\n\ntwo\r\n three  \t four \n",
        "don't WE'LL ÑANDÚ straße",
        "<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>assistant\n",
        " leading <think> and <tts_pad> in text",
    ],
)
def test_token_ids_are_those_of_the_reference_processor(
    tiny_checkpoint: TinyCheckpoint, text: str
) -> None:
    path = tiny_checkpoint("custom_voice", "tiny")
    assert TextTokenizer.from_dir(path).encode(text) == reference(path).token_ids(text)


@pytest.mark.parametrize(
    ("variant", "size"),
    [
        ("custom_voice", "tiny"),
        ("custom_voice", "tiny-0b6"),
        ("voice_design", "tiny"),
        ("base", "tiny"),
        ("base", "tiny-0b6"),
    ],
)
def test_the_reference_loads_every_tensor_we_write_and_needs_no_other(
    tiny_checkpoint: TinyCheckpoint, variant: str, size: str
) -> None:
    path = tiny_checkpoint(variant, size)
    model = reference(path).model
    parts = ((MODEL_WEIGHTS, model), (SPEECH_WEIGHTS, model.speech_tokenizer.model))
    for name, module in parts:
        loaded = module.state_dict()
        with safe_open(str(path / name), framework="pt") as file:
            assert set(file.keys()) == set(loaded)
            for tensor in file.keys():  # noqa: SIM118  not a mapping
                written = file.get_tensor(tensor)
                assert written.shape == loaded[tensor].shape, tensor
                assert torch.equal(written.to(loaded[tensor].dtype), loaded[tensor]), tensor


@pytest.mark.parametrize("language", ["english", "chinese", "german"])
def test_greedy_runs_of_the_embedded_kind_end_by_themselves(
    tiny_checkpoint: TinyCheckpoint, language: str
) -> None:
    run = reference(tiny_checkpoint("custom_voice", "tiny")).speak(
        TEXTS[language], speaker="Ryan", language=language, max_new_tokens=200
    )
    assert 2 <= len(run.codes) < 199
    assert len(run.wav) == 1920 * len(run.codes)
    assert 0.05 < run.wav.std() < 0.7


def test_an_unreachable_eos_lets_only_the_limit_end_a_run(tiny_checkpoint: TinyCheckpoint) -> None:
    run = reference(tiny_checkpoint("custom_voice", "tiny", eos="unreachable")).speak(
        TEXTS["english"], speaker="Ryan", language="English", max_new_tokens=80
    )
    assert len(run.codes) == 79
