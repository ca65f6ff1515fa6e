"""Training that goes on from a finished checkpoint."""

import json
from pathlib import Path

import pytest
import torch

from tests.unit.training.shapes import TEXTS, TINY
from training.codec import Codec
from training.export import round_to_disk, speech_tensors, write_model, write_speech
from training.resume import read_codec, read_talker
from training.shape import VoiceShape
from training.talker import TalkerModel
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


def test_a_codec_of_other_sizes_is_refused(checkpoint: tuple[Path, Codec, TalkerModel]) -> None:
    with pytest.raises(ValueError, match="decoder_config"):
        read_codec(checkpoint[0], VoiceShape())
