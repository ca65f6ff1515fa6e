"""Requests that are written together stand where each would stand alone."""

import dataclasses

import numpy as np
import pytest
import torch

from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.talker.slots import SlotTable
from serve_app.types import Prompt, Sampling
from tests.conftest import TinyCheckpoint

pytest.importorskip("vllm")

POSITIONS, SLOTS, HIDDEN, TEXTS, CODES = 24, 6, 8, 50, 40


def prompt(seed: int, length: int, trailing: int, **fields: object) -> Prompt:
    random = np.random.default_rng(seed)
    rows = random.integers(-1, CODES, (length, 17)).astype(np.int32)
    later = random.integers(0, TEXTS, trailing).astype(np.int32)
    talker, subtalker = Sampling(0.1 + seed, 5 + seed, 0.5), Sampling(0.2, 7, 0.25)
    made = Prompt("r", rows, later, 3, talker, subtalker, 2**40 + seed, 2, 9)
    return dataclasses.replace(made, **fields)


def test_a_step_of_arrivals(tiny_checkpoint: TinyCheckpoint) -> None:
    from serve_app.models.talker.arrivals import Arrival, write_arrivals
    from serve_app.models.talker.vllm.model import FrameEmbedding

    spec = read_spec(tiny_checkpoint()).talker
    tables = [torch.randn(TEXTS, HIDDEN), *(torch.randn(CODES, HIDDEN) for _ in range(16))]
    embedding = FrameEmbedding(tables, SLOTS)
    before = embedding.weight.clone()
    table = SlotTable(SLOTS, POSITIONS, spec, embedding.zero_row, torch.device("cpu"))
    table.seen.fill_(True)
    table.ids.fill_(1)
    offsets = np.array(embedding.offsets, np.int32)
    vector = np.linspace(0, 1, HIDDEN, dtype=np.float32)
    done = np.random.default_rng(9).integers(0, CODES, (3, 16))
    restored = torch.arange(5 * 16, dtype=torch.int32).view(5, 16) % CODES
    restored += torch.from_numpy(offsets[1:])
    asked = {
        4: (prompt(1, 6, 5), done[:0], 0, None),
        0: (prompt(2, 3, 9), done, 3, None),
        2: (prompt(3, 9, 0, speaker_vector=vector, speaker_position=4), done[:0], 0, None),
        5: (prompt(4, 2, 1), done[:0], 5, restored),
    }
    write_arrivals(
        [
            Arrival.of(slot, one, made, frames, codes, embedding, offsets)
            for slot, (one, made, frames, codes) in asked.items()
        ],
        table,
        embedding,
        int(offsets[0]),
    )
    for slot, (one, made, frames, codes) in asked.items():
        expected = np.full((POSITIONS, 17), -1, np.int64)
        length, trailing = len(one.rows), one.trailing_text
        expected[:length] = one.rows
        expected[length:, 0] = one.pad_text_id
        expected[length : length + len(trailing), 0] = trailing
        expected[length : length + len(made), 1:] = made
        ids = np.where(expected >= 0, expected + offsets, embedding.zero_row)
        if one.speaker_vector is not None:
            ids[one.speaker_position, 1] = embedding.speaker_row(slot)
            assert embedding.weight[embedding.speaker_row(slot)].tolist() == vector.tolist()
        if codes is not None:
            ids[length : length + frames, 1:] = codes.numpy()
        written = length + max(len(trailing), len(made), frames)
        np.testing.assert_array_equal(table.ids[slot, :written].numpy(), ids[:written])
        np.testing.assert_array_equal(table.ids[slot, written:, 0].numpy(), ids[written:, 0])
        seen = ids[length : length + frames, 1] - offsets[1]
        assert table.seen[slot].nonzero()[:, 0].tolist() == sorted(set(seen.tolist()))
        talker, sub = one.talker, one.subtalker
        ints = [one.seed, length, one.min_new_tokens, talker.top_k, sub.top_k]
        assert table.ints[slot].tolist() == ints
        floats = (talker.temperature, talker.top_p, talker.repetition_penalty)
        floats += (sub.temperature, sub.top_p)
        np.testing.assert_allclose(table.floats[slot].numpy(), floats, rtol=1e-6)
    for slot in set(range(SLOTS + 1)) - set(asked):
        assert (table.ids[slot] == 1).all()
        assert table.seen[slot].all()
    voices = [embedding.speaker_row(2)]
    untouched = [row for row in range(len(before)) if row not in voices]
    assert torch.equal(embedding.weight[untouched], before[untouched])
