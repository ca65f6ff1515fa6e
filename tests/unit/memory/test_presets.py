"""Settings by the memory that there is."""

import re
from pathlib import Path
from typing import Any

import pytest

from serve_app.config import AppConfig
from serve_app.deployments.limits import deployment_options
from serve_app.models.memory.estimate import MIB, estimate
from serve_app.models.memory.presets import check, fitted, groups
from tests.unit.memory.test_estimate import spec_of

# What nvidia-smi says, in MiB: RTX 4060, 4070, 4060 Ti, 4090, L40S, H100.
CARDS = {8: 8_188, 12: 12_282, 16: 16_380, 24: 24_564, 48: 46_068, 80: 81_559}


def auto(**changes: Any) -> AppConfig:
    return AppConfig.model_validate({"profile": "auto", "placement": "fused", **changes})


@pytest.mark.parametrize(
    ("size", "placement", "streams"),
    [
        ("0.6b", "fused", {8: 16, 12: 32, 16: 32, 24: 64, 48: 256, 80: 256}),
        ("1.7b", "fused", {8: 4, 12: 16, 16: 32, 24: 64, 48: 256, 80: 256}),
        ("0.6b", "split", {8: 8, 12: 16, 16: 32, 24: 64, 48: 256, 80: 256}),
        ("1.7b", "split", {12: 16, 16: 32, 24: 64, 48: 256, 80: 256}),
    ],
)
def test_a_card_carries_as_many_streams_as_its_memory_holds(
    size: str, placement: str, streams: dict[int, int]
) -> None:
    spec = spec_of(size)
    for card, expected in streams.items():
        memory = CARDS[card] * MIB
        config = fitted(auto(placement=placement), spec, memory)
        assert config.talker.max_num_seqs == expected, (card, config.talker)
        assert estimate(config, spec).total < 0.95 * memory
        assert config.code_predictor.batch_sizes[-1] == expected
        assert config.speech_decoder.max_streams >= expected
        assert config.speech_decoder.batch_sizes[-1] == min(64, expected)
        # All of it is still what a strict reader of the file would take.
        assert AppConfig.model_validate(config.model_dump()) == config
        assert deployment_options(config, 100.0, 16)


def table() -> dict[tuple[str, str, str], list[str]]:
    """The rows of docs/support.md, by size, task and placement."""
    page = (Path(__file__).parents[3] / "docs/support.md").read_text("utf-8")
    rows = re.findall(r"^\| (0\.6b|1\.7b) (Base )?`(fused|split)` \| (.*) \|$", page, re.M)
    return {
        (size, "base" if base else "custom_voice", placement): cells.split(" | ")
        for size, base, placement, cells in rows
    }


def cell(size: str, task: str, placement: str, card: int) -> str:
    try:
        config = fitted(auto(placement=placement), spec_of(size, task), CARDS[card] * MIB)
    except ValueError:
        return "refused"
    talker = config.talker
    assert talker.kv_cache_bytes is not None
    longest = "" if talker.max_model_len == 16384 else f" ({talker.max_model_len:,})"
    return f"{talker.max_num_seqs}, {talker.kv_cache_bytes / (1 << 30):.1f}{longest}"


def test_the_table_of_cards_says_what_is_set_on_them() -> None:
    rows = table()
    assert len(rows) == 8
    for row, cells in rows.items():
        assert cells == [cell(*row, card) for card in CARDS], row


def test_an_encoder_on_the_cpu_takes_nothing_of_the_gpu() -> None:
    memory = CARDS[8] * MIB
    config = fitted(auto(voice_encoder={"device": "cpu"}), spec_of("0.6b", "base"), memory)
    assert config.talker.max_num_seqs == 16


@pytest.mark.parametrize("size", ["0.6b", "1.7b"])
@pytest.mark.parametrize("placement", ["fused", "split"])
def test_more_memory_never_carries_fewer_streams(size: str, placement: str) -> None:
    spec, last = spec_of(size), 0
    for gib in range(12, 100, 2):
        config = fitted(auto(placement=placement), spec, gib << 30)
        assert config.talker.max_num_seqs >= last
        last = config.talker.max_num_seqs


def test_a_request_of_full_length_fits_the_pool_of_every_preset() -> None:
    for card in CARDS.values():
        talker = fitted(auto(), spec_of("0.6b"), card * MIB).talker
        per_position = 2 * 28 * 8 * 128 * 2
        assert talker.kv_cache_bytes is not None
        assert talker.kv_cache_bytes >= (talker.max_model_len + 128) * per_position


def test_what_cannot_fit_is_refused_with_what_it_needs() -> None:
    with pytest.raises(ValueError, match=r"checkpoint of size 1b7 with 2 streams need more"):
        fitted(auto(), spec_of("1.7b"), 6 << 30)
    with pytest.raises(ValueError, match=r"weights 3.*a smaller checkpoint or a larger GPU"):
        fitted(auto(placement="split"), spec_of("1.7b"), CARDS[8] * MIB)


def test_what_is_stated_stays() -> None:
    stated = auto(talker={"max_num_seqs": 12, "kv_cache_bytes": 2 << 30})
    config = fitted(stated, spec_of("0.6b"), CARDS[24] * MIB)
    assert (config.talker.max_num_seqs, config.talker.kv_cache_bytes) == (12, 2 << 30)
    assert config.talker.max_model_len == 16384


def test_a_share_of_a_gpu_is_a_share_of_its_memory() -> None:
    half = {"talker": {"num_gpus": 0.2}, "code_predictor": {"num_gpus": 0.1}}
    config = auto(**half, speech_decoder={"num_gpus": 0.2})
    whole = fitted(auto(), spec_of("0.6b"), 12 << 30).talker.max_num_seqs
    assert fitted(config, spec_of("0.6b"), 24 << 30).talker.max_num_seqs == whole


def test_stages_on_gpus_of_their_own_are_looked_at_apart() -> None:
    shares = {"talker": {"num_gpus": 1.0}, "code_predictor": {"num_gpus": 0.5}}
    config = auto(placement="split", **shares, speech_decoder={"num_gpus": 0.5})
    assert [group.stages for group in groups(config, spec_of("0.6b"))] == [
        ("talker",), ("code_predictor",), ("speech_decoder",)
    ]  # fmt: skip
    assert [group.share for group in groups(config, spec_of("0.6b"))] == [1.0, 0.5, 0.5]
    together = fitted(auto(placement="split"), spec_of("1.7b"), 16 << 30)
    apart = fitted(config, spec_of("1.7b"), 16 << 30)
    assert apart.talker.max_num_seqs > together.talker.max_num_seqs


def test_a_stated_profile_is_refused_only_where_it_is_certain_not_to_fit() -> None:
    config, spec = AppConfig(placement="fused"), spec_of("1.7b")
    assert check(config, spec, 24 << 30) is None
    said = check(config, spec, 16 << 30)
    assert said is not None
    assert "profile: auto" in said
    with pytest.raises(ValueError, match=r"KV pool 7\.0"):
        check(config, spec, 10 << 30)


def test_a_card_leaves_room_for_the_encoder_of_a_checkpoint_that_clones() -> None:
    clones = spec_of("0.6b", "base")
    for gib, streams, encoders in ((8, 4, 1), (24, 64, 1), (80, 256, 2)):
        config = fitted(auto(), clones, CARDS[gib] * MIB)
        assert (config.talker.max_num_seqs, config.voice_encoder.max_replicas) == (
            streams,
            encoders,
        ), gib
        (group,) = groups(config, clones)
        assert estimate(config, clones, group.stages).total < 0.95 * CARDS[gib] * MIB
    on_cpu = fitted(auto(voice_encoder={"device": "cpu"}), clones, CARDS[8] * MIB)
    assert on_cpu.talker.max_num_seqs == 16
    own = fitted(auto(voice_encoder={"num_gpus": 1}), clones, CARDS[8] * MIB)
    assert own.talker.max_num_seqs == 16
