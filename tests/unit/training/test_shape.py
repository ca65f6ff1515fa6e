"""The sizes of the voice: valid configuration files, and small enough."""

import math
from pathlib import Path
from string import ascii_lowercase

import pytest

from serve_app.http.names import VOICE_ALIASES
from serve_app.models.checkpoint.encoder_shapes import speech_encoder_shapes
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.shapes import (
    code_predictor_shapes,
    speech_decoder_shapes,
    talker_shapes,
)
from serve_app.types import TextNeeds
from tests.unit.training.shapes import TEXTS
from training.shape import VoiceShape, voice_speech_config
from training.text import Splitter, write_configuration

_MOST_BYTES = 20 * 2**20
_BYTES_OF_A_WEIGHT = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("voice")
    write_configuration(path, VoiceShape(text_tokens=320), TEXTS)
    return path


def test_the_server_reads_the_configuration(folder: Path) -> None:
    spec = read_spec(folder)
    assert tuple(spec.talker.speaker_ids) == VoiceShape().speakers
    assert set(spec.talker.language_ids) == {"english"}
    assert not spec.supports_instructions
    assert set(spec.voice_aliases) == set(VOICE_ALIASES)
    assert set(spec.voice_aliases.values()) == set(VoiceShape().speakers)
    assert spec.text_needs == TextNeeds(200, 4, True, ascii_lowercase)
    assert spec.talker.vocab_size - 1024 == spec.code_predictor.vocab_size
    assert spec.talker.codec_eos_id >= spec.code_predictor.vocab_size


def test_the_checkpoint_fits_into_the_repository(folder: Path) -> None:
    spec = read_spec(folder)
    shapes = talker_shapes(spec.talker) | code_predictor_shapes(spec.code_predictor)
    shapes |= speech_decoder_shapes(spec.speech_decoder)
    shapes |= speech_encoder_shapes(voice_speech_config(VoiceShape())["encoder_config"])
    # The tokenizer of the test is smaller than the voice's.
    missing = (VoiceShape().text_tokens - 320) * VoiceShape().text_hidden
    weights = sum(math.prod(shape) for shape in shapes.values()) + missing
    assert weights * _BYTES_OF_A_WEIGHT < _MOST_BYTES - 100_000


def test_a_varied_split_spells_the_same_text(folder: Path) -> None:
    splitter = Splitter(folder, dropout=0.5)
    exact = splitter.exact.encode(TEXTS[0])
    varied = [splitter.varied(TEXTS[0]) for _ in range(20)]
    assert any(split != exact for split in varied)
    assert max(len(split) for split in varied) > len(exact)
