"""Training that goes on from a finished checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from tests.unit.training.shapes import TEXTS, TINY
from training.batches import Batches, BatchOptions
from training.codec import Codec, CodecTrainer, CodecTraining
from training.codes import CodeBook
from training.corpus import Stream
from training.critics import Critics
from training.export import (
    round_to_disk,
    speech_tensors,
    write_heads,
    write_model,
    write_speech,
)
from training.progress import Clock, Log
from training.resume import read_codec, read_talker, resume
from training.shape import VoiceShape
from training.talker import TalkerModel, TalkerTrainer, TalkerTraining
from training.text import write_configuration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Codec, TalkerModel]:
    folder = tmp_path_factory.mktemp("voice")
    torch.manual_seed(5)
    write_configuration(folder, TINY, TEXTS)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    codec, talker = Codec(TINY), TalkerModel(config)
    with torch.no_grad():
        codec.books.total.copy_(torch.randn_like(codec.books.total))
    round_to_disk(codec)
    write_speech(folder, codec)
    write_model(folder, talker)
    return folder, codec, talker


def test_a_codec_comes_back_as_it_was_written(
    checkpoint: tuple[Path, Codec, TalkerModel],
) -> None:
    folder, codec, _ = checkpoint
    again = read_codec(folder, TINY)
    assert bool(again.books.started)
    expected, found = speech_tensors(codec), speech_tensors(again)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_talker_comes_back_as_it_was_written(
    checkpoint: tuple[Path, Codec, TalkerModel],
) -> None:
    folder, _, talker = checkpoint
    again = read_talker(folder).talker.state_dict()
    for name, value in talker.talker.state_dict().items():
        assert torch.equal(again[name], value.to(torch.bfloat16).float()), name


def test_heads_that_no_checkpoint_holds_come_back_from_their_file(
    checkpoint: tuple[Path, Codec, TalkerModel], tmp_path: Path
) -> None:
    folder, codec, talker = checkpoint
    critics, files = Critics(4), (tmp_path / "codec.pt", tmp_path / "talker.pt")
    write_heads(tmp_path / "heads.pt", codec, critics, talker)
    resume(folder, *files, tmp_path / "checkpoint", TINY, tmp_path / "heads.pt")
    stored, taught = (torch.load(file, weights_only=True) for file in files)
    for found, module in (
        (stored["codec"]["phonemes.weight"], codec.phonemes.weight),
        (taught["model"]["phonemes.weight"], talker.phonemes.weight),
        (stored["critics"]["listener.layers.0.weight"], critics.listener.layers[0].weight),
    ):
        assert torch.equal(found, module.detach().bfloat16().float())


@pytest.mark.parametrize("with_heads", [False, True])
def test_a_decoder_waits_only_for_critics_that_know_nothing(
    checkpoint: tuple[Path, Codec, TalkerModel], tmp_path: Path, with_heads: bool
) -> None:
    folder, codec, talker = checkpoint
    config, heads = CodecTraining(critic_width=4), tmp_path / "heads.pt"
    write_heads(heads, codec, Critics(4) if with_heads else None, talker)
    file = tmp_path / "codec.pt"
    resume(folder, file, tmp_path / "talker.pt", tmp_path / "checkpoint", TINY, heads)
    at = {spent: Clock(total_s=1000.0, limit_s=1e9, spent_s=spent) for spent in (50.0, 100.0)}
    for stage in ("decoder", "all"):
        trainer = CodecTrainer(file, TINY, config, torch.device("cpu"), stage)
        assert (trainer.rate_now(at[50.0], critics_from=0.0) > 0) == with_heads
        assert trainer.rate_now(at[100.0], critics_from=0.0) > 0
        assert trainer.rate_now(at[50.0], critics_from=0.5) > 0


def _stream(frames: int) -> Stream:
    generator = torch.Generator().manual_seed(4)
    audio = torch.randint(-3000, 3000, (frames * 1920,), generator=generator, dtype=torch.int16)
    labels = torch.randint(0, 50, (frames, 4), generator=generator, dtype=torch.uint8)
    return Stream((), audio, labels, torch.tensor([0, frames]))


@pytest.mark.parametrize("books_learn", [False, True])
def test_codes_mean_what_they_meant_where_the_books_stay(
    checkpoint: tuple[Path, Codec, TalkerModel], tmp_path: Path, books_learn: bool
) -> None:
    file = tmp_path / "codec.pt"
    resume(checkpoint[0], file, tmp_path / "talker.pt", tmp_path / "checkpoint", TINY)
    config = CodecTraining(batch=2, crop_frames=4, critic_width=4, books_learn=books_learn)
    trainer = CodecTrainer(file, TINY, config, torch.device("cpu"), "all")
    codec = trainer.codec
    entries = codec.books.entries.clone()
    weights = [next(part.parameters()).detach().clone() for part in _parts(codec)]
    trainer.run(_stream(12), 1e4, 0.2, Log(tmp_path / "log.jsonl"), critics_from=1.0)
    assert torch.equal(codec.books.entries, entries) != books_learn
    for before, part in zip(weights, _parts(codec), strict=True):
        assert not torch.equal(before, next(part.parameters())), type(part).__name__


def _parts(codec: Codec) -> tuple[torch.nn.Module, ...]:
    return codec.speech.encoder.encoder, codec.speech.decoder.decoder


def test_what_judges_learns_before_what_is_judged(
    checkpoint: tuple[Path, Codec, TalkerModel], tmp_path: Path
) -> None:
    file = tmp_path / "codec.pt"
    resume(checkpoint[0], file, tmp_path / "talker.pt", tmp_path / "checkpoint", TINY)
    config = CodecTraining(
        batch=2, crop_frames=4, critic_frames=2, critic_crops=1, critic_width=4, critics_ahead=1.0
    )
    trainer = CodecTrainer(file, TINY, config, torch.device("cpu"), "all")
    judges = trainer.codec.phonemes, trainer.critics.listener.layers, trainer.critics.members
    parts = (*_parts(trainer.codec), *judges)
    before = [next(part.parameters()).detach().clone() for part in parts]
    trainer.run(_stream(12), 1e4, 0.2, Log(tmp_path / "log.jsonl"), critics_from=0.0)
    pairs = zip(before, parts, strict=True)
    changed = [not torch.equal(own, next(part.parameters())) for own, part in pairs]
    assert changed == [False, False, True, True, True]


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_phases_are_looked_at_only_where_that_is_asked_for(
    checkpoint: tuple[Path, Codec, TalkerModel], tmp_path: Path, weight: float
) -> None:
    file, log = tmp_path / "codec.pt", tmp_path / "log.jsonl"
    resume(checkpoint[0], file, tmp_path / "talker.pt", tmp_path / "checkpoint", TINY)
    config = CodecTraining(batch=2, crop_frames=4, critic_width=4, phase_weight=weight)
    trainer = CodecTrainer(file, TINY, config, torch.device("cpu"), "all")
    trainer.run(_stream(12), 1e4, 0.2, Log(log), critics_from=1.0)
    assert ("phase" in json.loads(log.read_text().splitlines()[0])) == (weight > 0)
    assert all(torch.isfinite(parameter).all() for parameter in trainer.codec.parameters())


def test_books_that_are_not_there_cannot_stay(tmp_path: Path) -> None:
    config = CodecTraining(critic_width=4, books_learn=False)
    trainer = CodecTrainer(tmp_path / "codec.pt", TINY, config, torch.device("cpu"), "all")
    with pytest.raises(ValueError, match="no codebooks to keep"):
        trainer.run(_stream(12), 1e4, 0.2, Log(tmp_path / "log.jsonl"), critics_from=1.0)


@pytest.mark.parametrize("until", [0.0, 1.0])
def test_a_talker_drops_nothing_towards_the_end(
    checkpoint: tuple[Path, Codec, TalkerModel],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    until: float,
) -> None:
    folder = checkpoint[0]
    monkeypatch.setenv("VOICE_LOADERS", "0")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    training = TalkerTraining(
        frame_dropout=0.0, group_noise=0.0, coarse_history=0.0, dropout_until=until
    )
    options = BatchOptions(positions=320, predictor_rows=8)
    device = torch.device("cpu")
    trainer = TalkerTrainer(tmp_path / "talker.pt", folder, config, training, device, options)
    trainer.run(_book(6, 9), 1e4, 0.2, Log(tmp_path / "log.jsonl"))
    assert trainer.steps
    drawn = Batches(_book(6, 9), np.arange(6), trainer.ids, trainer.splitter, options, seed=0)
    batch = next(drawn.draw()).to(device)
    noisy, plain = (float(trainer.losses(batch, noisy=n)["first"].detach()) for n in (True, False))
    assert (noisy == plain) == (until == 0.0)


def _book(sentences: int, frames: int) -> CodeBook:
    rng = np.random.default_rng(2)
    shape = (sentences * frames, TINY.num_groups)
    return CodeBook(
        rng.integers(0, TINY.num_codes, shape).astype(np.uint8),
        rng.integers(0, 50, (sentences * frames, 4)).astype(np.uint8),
        np.arange(sentences + 1) * frames,
        np.arange(1, sentences + 1),
        np.ones(sentences, bool),
        ("heart", "emma") * (sentences // 2),
        TEXTS * (sentences // len(TEXTS)),
    )


def test_a_codec_of_other_sizes_is_refused(checkpoint: tuple[Path, Codec, TalkerModel]) -> None:
    with pytest.raises(ValueError, match="decoder_config"):
        read_codec(checkpoint[0], replace(VoiceShape(), decoder_dim=TINY.decoder_dim))


WIDE = replace(TINY, decoder_dim=48)


def _codes(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    shape = (2, TINY.num_groups, count)
    return torch.randint(0, TINY.num_codes, shape, generator=generator)


@torch.no_grad()
def test_a_wider_codec_says_the_same(checkpoint: tuple[Path, Codec, TalkerModel]) -> None:
    narrow, wide = read_codec(checkpoint[0], TINY), read_codec(checkpoint[0], WIDE)
    assert wide.speech.decoder.decoder[0].conv.weight.shape[0] == 48
    codes = _codes(6)
    expected = narrow.decode(*narrow.entries_of(codes))
    assert expected.std() > 1e-4
    torch.testing.assert_close(wide.decode(*wide.entries_of(codes)), expected, rtol=1e-4, atol=1e-6)
    wave = torch.randn(1, 1920 * 5) * 0.1
    assert torch.equal(wide.encode([wave[0]])[0], narrow.encode([wave[0]])[0])


def test_new_channels_come_to_be_heard(checkpoint: tuple[Path, Codec, TalkerModel]) -> None:
    wide = read_codec(checkpoint[0], WIDE)
    decoder = wide.speech.decoder
    optimizer = torch.optim.SGD(decoder.parameters(), 1e-2)
    semantic, acoustic = wide.entries_of(_codes(6))
    up = decoder.decoder[1].block[1].conv.weight  # [in, out, kernel]
    for _ in range(2):
        optimizer.zero_grad()
        (wide.decode(semantic, acoustic) - 0.5).square().mean().backward()
        optimizer.step()
    assert up.grad[32:, :16].abs().max() > 0, "old channels do not learn to read new ones"
    assert up.grad[32:, 16:].abs().max() > 0, "new channels do not learn"


@torch.no_grad()
def test_what_is_resumed_wider_is_a_checkpoint(
    checkpoint: tuple[Path, Codec, TalkerModel], tmp_path: Path
) -> None:
    folder, _, talker = checkpoint
    out = tmp_path / "checkpoint"
    resume(folder, tmp_path / "codec.pt", tmp_path / "talker.pt", out, WIDE)
    codec = Codec(WIDE)
    codec.load_state_dict(torch.load(tmp_path / "codec.pt", weights_only=True)["codec"])
    write_speech(out, codec)
    write_model(out, talker)
    served = open_checkpoint(out)
    assert served.spec.speech_decoder.decoder_dim == 48
    tensors = served.speech_tokenizer_tensors("decoder.")
    model = SpeechDecoderModel(served.spec.speech_decoder).load(tensors, torch.float32)
    codes = _codes(6)
    expected = codec.decode(*codec.entries_of(codes)).clamp(-1, 1)
    torch.testing.assert_close(
        model.decode(codes, model.new_state(2)), expected, rtol=1e-2, atol=2e-3
    )


def test_a_narrower_codec_is_refused(checkpoint: tuple[Path, Codec, TalkerModel]) -> None:
    with pytest.raises(ValueError, match="decoder_config"):
        read_codec(checkpoint[0], replace(TINY, decoder_dim=16))
