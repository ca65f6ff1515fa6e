"""A plan becomes a corpus: batches, levels, files, and where it goes on."""

import time
from pathlib import Path

import numpy as np
import torch

from tests.unit.training.teachers import tiny_teacher
from training.corpus import Utterance, utterances
from training.plan import Planned
from training.synthesis import Portion, batches, level, own, padded, speak
from training.teacher import Reading

VOICES = ("heart", "emma")


def plan(count: int) -> list[Planned]:
    rng = np.random.default_rng(7)
    return [
        Planned(
            i, VOICES[i % 2], tuple(rng.integers(1, 24, rng.integers(6, 20)).tolist()), f"S {i}."
        )
        for i in range(count)
    ]


def spoken(items: list[Planned], out: Path, seconds: float = 600.0) -> list[Utterance]:
    styles = {voice: torch.randn(510, 16) for voice in VOICES}
    speak(tiny_teacher(), styles, items, out, Portion(8, 150), time.monotonic() + seconds)
    return list(utterances(out))


def test_what_is_written_is_what_the_manifest_says(tmp_path: Path) -> None:
    items = plan(19)
    rows = spoken(items, tmp_path)
    assert sorted(row.id for row in rows) == list(range(19))
    (file,) = tmp_path.glob("audio-*.s16")
    sound = np.fromfile(file, "<i2")
    assert sum(row.samples for row in rows) == len(sound)
    begin = 0
    for row in rows:
        item = items[row.id]
        assert (row.voice, row.text) == (item.voice, item.text)
        assert (row.phonemes, row.offset) == ((0, *item.tokens, 0), begin)
        assert len(row.steps) == len(row.phonemes)
        assert row.cut + row.samples <= 600 * sum(row.steps)
        # Faded at both ends, and as loud as all others.
        piece = sound[begin : begin + row.samples] / 32767
        assert abs(piece[0]) < 1e-3
        assert abs(piece[-1]) < 1e-3
        assert np.abs(piece).max() > 0.1
        begin += row.samples


def test_portions_keep_the_plans_order(tmp_path: Path) -> None:
    rows = spoken(plan(19), tmp_path)
    portions = [row.id // 8 for row in rows]
    assert portions == sorted(portions)


def test_nothing_is_spoken_when_the_time_is_over(tmp_path: Path) -> None:
    assert spoken(plan(3), tmp_path, seconds=-1.0) == []


def test_a_team_deals_the_plan_out_whatever_is_spoken_already() -> None:
    items = plan(10)
    shares = [{item.id for item in own(items, (part, 3))} for part in range(3)]
    assert shares[0] | shares[1] | shares[2] == set(range(10))
    assert sum(map(len, shares)) == 10
    assert {item.id for item in own(items[4:], (1, 3))} == shares[1] - {1}


def reading(length: int) -> Reading:
    return Reading(torch.empty(1, 1), torch.empty(1, 1), torch.empty(1), (length - 1, 1))


def test_batches_hold_similar_lengths_within_the_limit() -> None:
    rng = np.random.default_rng(1)
    items = plan(300)
    lengths = rng.integers(20, 400, 300).tolist()
    found = batches(items, [reading(length) for length in lengths], 3000)
    assert sorted(item.id for batch in found for item in batch.items) == list(range(300))
    for batch in found:
        assert batch.size * len(batch.items) <= 3000
        taken = [one.length for one in batch.readings]
        assert taken == [lengths[item.id] for item in batch.items]
        assert max(taken) <= batch.size < 1.3 * max(taken)
    waste = sum(batch.size * len(batch.items) for batch in found) / sum(lengths)
    assert waste < 1.15
    assert [batch.size for batch in found] != sorted((b.size for b in found), reverse=True)


def test_a_sentence_longer_than_the_limit_is_alone() -> None:
    (batch,) = batches(plan(1), [reading(900)], 300)
    assert batch.size >= 900


def test_sizes_are_few_and_close() -> None:
    sizes = {padded(steps) for steps in range(1, 1025)}
    assert all(steps <= padded(steps) <= steps * 1.13 for steps in range(1, 1025))
    assert len(sizes) < 75


def test_levels_trim_silence_and_reach_the_loudness() -> None:
    tone = np.sin(np.arange(24_000) * 0.05).astype(np.float32) * 0.03
    audio = np.concatenate([np.zeros(9_000), tone, np.zeros(9_000)]).astype(np.float32)
    found = level(audio)
    assert found is not None
    samples, cut = found
    assert 9_000 - 1_920 <= cut <= 9_010 - 1_920
    assert abs(len(samples) - (1_920 + 24_000 + 4_800)) < 20
    middle = samples[4_000:20_000] / 32767
    assert 0.08 < np.sqrt(np.mean(middle**2)) < 0.11
    assert level(np.zeros(9_000, np.float32)) is None
    audio[12_000] = np.nan
    assert level(audio) is None
