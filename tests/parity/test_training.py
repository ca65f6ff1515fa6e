"""What is trained is what the reference runs: same prompts, states, codes and samples."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.reference import Reference
from tests.unit.training.shapes import TEXTS, TINY
from training.chorus import Chorus, Manner
from training.codec import Codec
from training.export import round_to_disk, write_model, write_speech
from training.layout import PromptIds, lay_out
from training.talker import TalkerModel
from training.text import Splitter, write_configuration


@dataclass(frozen=True)
class _Trained:
    """One random voice, in the recipe's hands and in the reference's."""

    folder: Path
    codec: Codec
    talker: TalkerModel
    reference: Reference


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> _Trained:
    folder = tmp_path_factory.mktemp("voice")
    torch.manual_seed(3)
    write_configuration(folder, TINY, TEXTS)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    codec, talker = Codec(TINY).eval(), TalkerModel(config).eval()
    codec.prepare()
    with torch.no_grad():
        codec.books.total.copy_(torch.randn_like(codec.books.total))
        for parameter in talker.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
            parameter.copy_(parameter.to(torch.bfloat16).float())
    round_to_disk(codec)
    write_speech(folder, codec)
    write_model(folder, talker)
    return _Trained(folder, codec, talker, Reference(folder))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("language", ["English", "Auto"])
@torch.no_grad()
def test_the_talker_is_taught_what_the_reference_runs(
    trained: _Trained, streaming: bool, language: str
) -> None:
    config = json.loads((trained.folder / "config.json").read_text(encoding="utf-8"))
    splitter = Splitter(trained.folder, dropout=0.0)
    ids = PromptIds.from_config(config, splitter.newline)
    run = trained.reference.speak(
        TEXTS[0],
        speaker="emma",
        language=language,
        non_streaming_mode=not streaming,
        max_new_tokens=20,
    )
    codes = torch.from_numpy(run.codes)
    rows = lay_out(
        ids,
        splitter.exact.encode(TEXTS[0]),
        run.codes.astype(np.int64),
        "emma",
        streaming=streaming,
        language=language == "English",
    )
    start = len(rows.text) - len(codes)
    talker = trained.talker
    embedded = talker.embed(torch.from_numpy(rows.text)[None], torch.from_numpy(rows.codes)[None])
    torch.testing.assert_close(embedded[0, :start], torch.from_numpy(run.prompt_embeds))
    states = talker.hidden(embedded)[0, start - 1 : -1]
    torch.testing.assert_close(states, torch.from_numpy(run.hidden), rtol=1e-4, atol=1e-4)
    assert torch.equal(talker.fill(states, codes).argmax(-1), codes[:, 1:])


@pytest.mark.parametrize("streaming", [False, True])
def test_sentences_spoken_together_have_the_references_codes(
    trained: _Trained, streaming: bool
) -> None:
    config = json.loads((trained.folder / "config.json").read_text(encoding="utf-8"))
    splitter = Splitter(trained.folder, dropout=0.0)
    ids = PromptIds.from_config(config, splitter.newline)
    items = [(TEXTS[0], "emma"), (TEXTS[2], "daniel")]
    manner = Manner(streaming=streaming, max_frames=9)
    together = Chorus(trained.talker, ids, splitter).speak(items, manner)
    for (text, voice), codes in zip(items, together, strict=True):
        run = trained.reference.speak(
            text,
            speaker=voice,
            language="English",
            non_streaming_mode=not streaming,
            max_new_tokens=10,
        )
        assert torch.equal(codes.T, torch.from_numpy(run.codes).long())


@torch.no_grad()
def test_the_codec_gives_the_references_codes_and_samples(trained: _Trained) -> None:
    tokenizer = trained.reference.model.speech_tokenizer.model
    wave = 0.1 * torch.randn(12 * 1920)
    theirs = tokenizer.encode(wave[None], torch.ones_like(wave).long()[None]).audio_codes[0]
    ours = trained.codec.encode([wave])[0].T
    assert float((ours == theirs).float().mean()) > 0.98  # distances are summed in another order
    samples = tokenizer.decode(theirs[None]).audio_values[0]
    decoded = trained.codec.decode(*trained.codec.entries_of(theirs.T[None]))[0].clamp(-1, 1)
    torch.testing.assert_close(decoded, samples, rtol=1e-4, atol=1e-5)
