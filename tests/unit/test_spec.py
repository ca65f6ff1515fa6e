"""Facts of a checkpoint: read completely, refused loudly."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.reading import (
    CONFIG,
    GENERATION_CONFIG,
    SPEECH_CONFIG,
    read_spec,
)
from serve_app.models.checkpoint.voice_aliases import VOICE_ALIASES
from tests.conftest import TinyCheckpoint


def edited(source: Path, target: Path, file: str, edit: Callable[[dict[str, Any]], Any]) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"))
    data = json.loads((target / file).read_text())
    edit(data)
    (target / file).write_text(json.dumps(data))
    return target


def test_every_fact_comes_from_the_files(tiny_checkpoint: TinyCheckpoint) -> None:
    spec = read_spec(tiny_checkpoint("custom_voice", "tiny"))
    assert (spec.task, spec.size) == ("custom_voice", "1b7")
    assert spec.talker.transformer.hidden_size == 64
    assert spec.talker.transformer.rope_theta == 1_000_000
    assert spec.talker.codec_eos_id == 2150
    assert spec.talker.speaker_dialects == {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}
    assert spec.code_predictor.has_projection
    assert spec.code_predictor.talker_hidden_size == 64
    assert spec.speech_decoder.vq_dim == 16
    assert spec.speech_decoder.samples_per_frame == 1920
    assert spec.generation.talker.repetition_penalty == 1.05
    assert spec.generation.subtalker.repetition_penalty == 1.0
    assert (spec.generation.max_new_tokens, spec.generation.min_new_tokens) == (8192, 2)


def test_a_talker_as_wide_as_the_code_predictor_has_no_projection(
    tiny_checkpoint: TinyCheckpoint,
) -> None:
    assert not read_spec(tiny_checkpoint("base", "tiny-0b6")).code_predictor.has_projection


@pytest.mark.parametrize(
    ("variant", "size", "expected"),
    [
        ("custom_voice", "tiny", True),
        ("custom_voice", "tiny-0b6", False),
        ("voice_design", "tiny", True),
        ("base", "tiny", False),
    ],
)
def test_the_card_says_who_takes_instructions(
    tiny_checkpoint: TinyCheckpoint, variant: str, size: str, expected: bool
) -> None:
    path = tiny_checkpoint(variant, size)
    card = read_spec(path).card("tiny", str(path), embedded=True)
    assert card.supports_instructions is expected
    assert card.languages[0] == "auto"
    assert len(card.languages) == 11
    assert not any("dialect" in language for language in card.languages)
    assert bool(card.voices) is (variant == "custom_voice")
    assert card.frame_rate_hz == 12.5


def test_a_checkpoint_may_name_its_voices_twice(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    path = edited(tiny_checkpoint("custom_voice", "tiny"), tmp_path / "a", CONFIG, dict)
    assert not read_spec(path).card("tiny", str(path), embedded=False).voice_aliases
    (path / VOICE_ALIASES).write_text('{"Nova": "Vivian"}')
    card = read_spec(path).card("tiny", str(path), embedded=False)
    assert card.voice_aliases == {"nova": "vivian"}


@pytest.mark.parametrize("text", ["{", "[]", '{"nova": "nobody"}', '{"nova": 3}'])
def test_bad_names_of_voices_are_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, text: str
) -> None:
    path = edited(tiny_checkpoint("custom_voice", "tiny"), tmp_path / "a", CONFIG, dict)
    (path / VOICE_ALIASES).write_text(text)
    with pytest.raises(CheckpointError, match=VOICE_ALIASES):
        read_spec(path)


def test_rope_theta_may_stand_in_rope_parameters(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    def move(data: dict[str, Any]) -> None:
        talker = data["talker_config"]
        talker["rope_parameters"] = {"rope_theta": talker.pop("rope_theta") / 2}

    path = edited(tiny_checkpoint(), tmp_path / "c", CONFIG, move)
    assert read_spec(path).talker.transformer.rope_theta == 500_000


def test_greedy_generation_is_temperature_zero(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path
) -> None:
    path = edited(
        tiny_checkpoint(),
        tmp_path / "c",
        GENERATION_CONFIG,
        lambda data: data.update(do_sample=False),
    )
    generation = read_spec(path).generation
    assert (generation.talker.temperature, generation.subtalker.temperature) == (0.0, 0.9)


@pytest.mark.parametrize(
    ("file", "edit", "named"),
    [
        (CONFIG, lambda c: c["talker_config"].pop("rope_theta"), "talker_config.rope_theta"),
        (
            CONFIG,
            lambda c: c["talker_config"]["code_predictor_config"].pop("num_code_groups"),
            "talker_config.code_predictor_config.num_code_groups",
        ),
        (CONFIG, lambda c: c.pop("tts_pad_token_id"), "tts_pad_token_id"),
        (CONFIG, lambda c: c.update(model_type="qwen3"), "model_type is 'qwen3'"),
        (CONFIG, lambda c: c.update(tokenizer_type="qwen3_tts_tokenizer_25hz"), "25hz"),
        (CONFIG, lambda c: c.update(tts_model_type="song"), "song"),
        (CONFIG, lambda c: c["talker_config"].update(hidden_size="64"), "hidden_size"),
        (CONFIG, lambda c: c["talker_config"].update(num_code_groups=8), "code groups"),
        (CONFIG, lambda c: c["talker_config"]["spk_id"].update(ryan=4000), "ryan"),
        (CONFIG, lambda c: c.update(tts_eos_token_id=100_000), "tts_eos"),
        (CONFIG, lambda c: c["talker_config"].update(vocab_size=3073), "2049 codes"),
        (
            CONFIG,
            lambda c: c["talker_config"]["code_predictor_config"].update(vocab_size=2049),
            "code_predictor_config.vocab_size",
        ),
        (GENERATION_CONFIG, lambda c: c.pop("subtalker_top_k"), "subtalker_top_k"),
        (SPEECH_CONFIG, lambda c: c["decoder_config"].pop("head_dim"), "decoder_config.head_dim"),
        (SPEECH_CONFIG, lambda c: c.update(model_type="mimi"), "mimi"),
    ],
)
def test_a_missing_or_foreign_fact_is_refused_by_name(
    tiny_checkpoint: TinyCheckpoint,
    tmp_path: Path,
    file: str,
    edit: Callable[[dict[str, Any]], Any],
    named: str,
) -> None:
    path = edited(tiny_checkpoint(), tmp_path / "c", file, edit)
    with pytest.raises(CheckpointError) as caught:
        read_spec(path)
    assert caught.value.file.endswith(file)
    assert named in caught.value.reason


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_missing_or_damaged_file_is_refused(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, content: str | None
) -> None:
    path = edited(tiny_checkpoint(), tmp_path / "c", CONFIG, lambda data: None)
    (path / CONFIG).unlink()
    if content is not None:
        (path / CONFIG).write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_spec(path)


def test_reading_facts_needs_no_torch() -> None:
    code = "import sys, serve_app.models.checkpoint.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_base_checkpoint_says_how_its_voices_are_encoded(tiny_checkpoint: TinyCheckpoint) -> None:
    path = tiny_checkpoint("base", "tiny-0b6")
    spec = read_spec(path)
    assert spec.voice_encoder is not None
    assert spec.voice_encoder.speaker.kernel_sizes == (5, 3, 3, 3, 1)
    assert spec.voice_encoder.speech.num_code_groups == 16
    assert spec.card("tiny", str(path), embedded=False).speaker_vector_size == 32
    other = read_spec(tiny_checkpoint("custom_voice", "tiny"))
    assert other.voice_encoder is None
    assert other.card("tiny", "", embedded=False).speaker_vector_size is None


@pytest.mark.parametrize(
    ("file", "section", "key", "value", "message"),
    [
        (CONFIG, "speaker_encoder_config", "enc_dim", 96, "enc_dim is 96"),
        (CONFIG, "speaker_encoder_config", "enc_channels", [32] * 5, "sum of its blocks"),
        (CONFIG, "speaker_encoder_config", "sample_rate", 16000, "sample_rate is 16000"),
        (SPEECH_CONFIG, "encoder_config", "num_quantizers", 8, "encoder_valid_num_quantizers"),
        (SPEECH_CONFIG, "encoder_config", "use_causal_conv", False, "use_causal_conv"),
        (SPEECH_CONFIG, "encoder_config", "head_dim", None, "head_dim"),
    ],
)
def test_encoders_that_do_not_fit_are_refused(
    tiny_checkpoint: TinyCheckpoint,
    tmp_path: Path,
    file: str,
    section: str,
    key: str,
    value: object,
    message: str,
) -> None:
    path = edited(
        tiny_checkpoint("base"),
        tmp_path / "c",
        file,
        lambda data: data[section].update({key: value}),
    )
    with pytest.raises(CheckpointError, match=message):
        read_spec(path)
