"""Prompts of cloned voices are the reference's, row by row."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.models.talker.prompt import build_prompt
from serve_app.types import ClonedVoice, Prompt, SpeechRequest
from tests.conftest import TinyCheckpoint
from tests.parity.clips import recording
from tests.parity.reference import Reference, ReferenceRun
from tests.parity.test_prompts import TEXTS, TOLERANCE, text_table

REFERENCE_TEXT = "A short recording, McDonald says 42 things."
# Fewer frames than text tokens, as many or more.
LANGUAGES = ("english", "chinese", "russian", "auto")
LENGTHS = {"short": 24_000, "long": 100_000}


@cache
def reference(path: Path) -> Reference:
    return Reference(path)


@cache
def voice(path: Path, length: str, text: str | None) -> tuple[ClonedVoice, object]:
    """A voice, and what it is to the reference."""
    item = reference(path).clone(recording(LENGTHS[length], len(length)), text)
    codes = None if item.ref_code is None else item.ref_code.numpy()
    return ClonedVoice(item.ref_spk_embedding.numpy(), codes, text), item


def embeds(path: Path, prompt: Prompt) -> np.ndarray:
    """float32 [P, H] of what a prompt's integers and vector stand for."""
    checkpoint = open_checkpoint(path)
    codec = "talker.model.codec_embedding."
    predictor = checkpoint.tensors("talker.code_predictor.model.codec_embedding.")
    tables = [text_table(path), checkpoint.tensors(codec)["weight"].float()]
    tables += [predictor[f"{group}.weight"].float() for group in range(15)]
    summed = np.zeros((len(prompt.rows), tables[0].shape[1]), np.float32)
    assert prompt.speaker_vector is not None
    assert prompt.rows[prompt.speaker_position, 1:].max() == -1
    summed[prompt.speaker_position] = prompt.speaker_vector
    for column in (*range(1, 17), 0):
        present = prompt.rows[:, column] >= 0
        ids = torch.from_numpy(prompt.rows[present, column]).long()
        summed[present] += tables[column][ids].numpy()
    return summed


def assert_same_rows(path: Path, prompt: Prompt, run: ReferenceRun) -> None:
    ours = embeds(path, prompt)
    assert ours.shape == run.prompt_embeds.shape
    np.testing.assert_allclose(ours, run.prompt_embeds, rtol=0, atol=TOLERANCE)
    trailing = prompt.trailing_text if len(prompt.trailing_text) else np.array([prompt.pad_text_id])
    rows = text_table(path)[torch.from_numpy(trailing).long()].numpy()
    np.testing.assert_allclose(rows, run.trailing, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("streaming_text", [False, True], ids=["whole-text", "streaming-text"])
@pytest.mark.parametrize(
    ("size", "length", "said"),
    [
        ("tiny", "short", None),
        ("tiny", "short", REFERENCE_TEXT),
        ("tiny", "long", REFERENCE_TEXT),
        ("tiny-0b6", "short", REFERENCE_TEXT),
    ],
)
def test_prompts_of_clones_are_those_of_the_reference(
    tiny_checkpoint: TinyCheckpoint, size: str, length: str, said: str | None, streaming_text: bool
) -> None:
    path = tiny_checkpoint("base", size)
    ours, theirs = voice(path, length, said)
    spec, tokenizer = open_checkpoint(path).spec, TextTokenizer.from_dir(path)
    for language in LANGUAGES:
        text = TEXTS[language]
        run = reference(path).speak(
            text,
            cloned=theirs,
            language=language.capitalize(),
            non_streaming_mode=not streaming_text,
            max_new_tokens=2,
        )
        request = SpeechRequest(
            "r", "tiny", text, ours, language, seed=0, streaming_text=streaming_text
        )
        assert_same_rows(path, build_prompt(request, spec, tokenizer, 4096), run)
