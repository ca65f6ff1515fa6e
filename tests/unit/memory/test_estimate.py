"""The memory model beside what was measured (docs/performance.md, "Start and memory")."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from serve_app.config import AppConfig
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.memory.decoder_steps import largest_step
from serve_app.models.memory.estimate import (
    MIB,
    STAGES,
    VOICE_ENCODER,
    Estimate,
    _row_bytes,
    estimate,
)
from serve_app.models.random_checkpoint.write import write_configuration
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.types import TaskType


@cache
def spec_of(size: Any, variant: TaskType = "custom_voice") -> ModelSpec:
    with TemporaryDirectory() as folder:
        write_configuration(Path(folder), size=size, variant=variant)
        return read_spec(Path(folder))


def estimated(size: str, placement: str, **changes: Any) -> Estimate:
    config = AppConfig.model_validate({"placement": placement, **changes})
    return estimate(config, spec_of(size))


ROOM = {"talker": {"max_num_seqs": 256}, "speech_decoder": {"max_streams": 256}}


@pytest.mark.parametrize(
    ("size", "placement", "changes", "peak_mib"),
    [
        ("1.7b", "fused", {}, 17_753),
        ("1.7b", "fused", ROOM, 40_165),
        ("1.7b", "fused", {"profile": "throughput"}, 37_361),
        ("1.7b", "split", {}, 19_222),
        ("1.7b", "split", ROOM, 41_361),
        ("0.6b", "fused", ROOM, 37_813),
        ("0.6b", "split", {}, 17_013),
        ("0.6b", "split", ROOM, 38_945),
    ],
)
def test_what_was_measured_is_estimated_within_three_percent(
    size: str, placement: str, changes: dict[str, Any], peak_mib: int
) -> None:
    found = estimated(size, placement, **changes).total / MIB
    assert found == pytest.approx(peak_mib, rel=0.03)


@pytest.mark.parametrize(
    ("size", "streams", "pool_mib", "took_mib"),
    [("0.6b", 16, 1955, 6_804), ("0.6b", 32, 6200, 13_296), ("1.7b", 16, 2711, 9_974)],
)
def test_what_small_presets_took_is_estimated_within_one_percent(
    size: str, streams: int, pool_mib: int, took_mib: int
) -> None:
    """By tests/gpu/test_memory.py, on an H100 and an H200 held to 8, 16 and 12 GiB."""
    rows = tuple(rows for rows in (1, 2, 4, 8, 16, 32) if rows <= streams)
    changes: dict[str, Any] = {
        "talker": {"max_num_seqs": streams, "kv_cache_bytes": pool_mib * MIB},
        "speech_decoder": {"max_streams": 2 * streams, "batch_sizes": rows},
    }
    found = estimated(size, "fused", **changes).total / MIB
    assert found == pytest.approx(took_mib, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "frames"),
    [
        # 64 streams have pieces of 8 frames at most together, those of 12 go by 32.
        ({}, 512),
        ({"batch_sizes": (1, 32), "max_streams": 64}, 384),
        ({"batch_sizes": (1, 32, 64), "max_streams": 16}, 384),
        ({"batch_sizes": (1, 16)}, 192),
        ({"dtype": "float32"}, 256),
    ],
)
def test_the_largest_step_is_one_that_there_is(changes: dict[str, Any], frames: int) -> None:
    config = AppConfig.model_validate({"speech_decoder": changes}).speech_decoder
    spec = spec_of("0.6b").speech_decoder
    itemsize = 4 if config.dtype == "float32" else 2
    assert largest_step(spec, itemsize, config) == frames


def test_the_state_of_a_stream_is_that_of_the_network_or_a_little_more() -> None:
    spec = spec_of("1.7b").speech_decoder
    real = SpeechDecoderModel(spec).state_layout.size * 2
    assert real <= _row_bytes(spec, 2) <= 1.02 * real


def test_float32_weighs_twice_and_each_process_of_split_has_a_context() -> None:
    plain, fused = estimated("1.7b", "split"), estimated("1.7b", "fused")
    assert plain.parts["processes"] == 3 * fused.parts["processes"]
    wide = estimated("1.7b", "fused", talker={"dtype": "float32"})
    assert wide.parts["KV pool"] == 2 * fused.parts["KV pool"]
    assert wide.parts["weights"] > 1.8 * fused.parts["weights"]


def test_stages_apart_take_what_they_take_together() -> None:
    config, spec = AppConfig(placement="split"), spec_of("0.6b")
    together = estimate(config, spec).total
    stages = ("talker", "code_predictor", "speech_decoder")
    assert sum(estimate(config, spec, (name,)).total for name in stages) == together


def test_a_checkpoint_that_clones_needs_room_for_its_voice_encoder() -> None:
    plain, clones = spec_of("0.6b"), spec_of("0.6b", "base")
    stages = (*STAGES, VOICE_ENCODER)
    config = AppConfig(placement="fused")
    before = estimate(config, clones).total
    # Weights of 68 million values in float32, a context, and some 0.7 GiB for 30 s of sound.
    for count in (1, 2):
        config = AppConfig(placement="fused", voice_encoder={"max_replicas": count})
        added = (estimate(config, clones, stages).total - before) / count
        assert 1.6 < added / 2**30 < 2.0
        assert estimate(config, plain, stages).total == estimate(config, plain).total
    short = AppConfig(placement="fused", ingress={"voices": {"max_s": 10}})
    assert (
        estimate(short, clones, stages).total < estimate(config, clones, stages).total - 800 * MIB
    )
    alone = estimate(AppConfig(), clones, (VOICE_ENCODER,)).parts
    assert alone["processes"] == alone["weights"] == 0
