"""New requests of a step, written to the slot table together.

Each would take an upload and some ten launches, for which the engine's thread holds Python's lock
while first audio waits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from serve_app.models.talker.slots import SlotTable
from serve_app.types import Prompt

if TYPE_CHECKING:  # what builds it imports vLLM
    from serve_app.models.talker.vllm.model import FrameEmbedding

_ABSENT = -1


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that has got its slot.

    rows: int32 [T, 1 + Q], its prompt, the frames made before and the text of frames to come: rows
        of the joined table.
    ints: as `SlotTable.ints`.
    floats: as `SlotTable.floats`.
    pad_text_id: of the text of all frames that follow.
    frames: made before, after `ints[1]` rows of prompt.
    restored: int32 [frames, Q], of a preempted request, on the device.
    vector: float32 [H] of a cloned voice, which `rows` name.
    """

    slot: int
    rows: np.ndarray
    ints: np.ndarray
    floats: np.ndarray
    pad_text_id: int
    frames: int
    restored: Tensor | None
    vector: np.ndarray | None

    @classmethod
    def of(
        cls,
        slot: int,
        prompt: Prompt,
        done: np.ndarray,
        frames: int,
        restored: Tensor | None,
        embedding: "FrameEmbedding",
        offsets: np.ndarray,
    ) -> "Arrival":
        """Lay out a prompt; `done` int64 [n, Q], `offsets` int32 [1 + Q] of `embedding`."""
        length, trailing = len(prompt.rows), prompt.trailing_text
        known = np.full(
            (length + max(len(trailing), len(done)), len(offsets)), _ABSENT, dtype=np.int32
        )
        known[:length] = prompt.rows
        known[length:, 0] = prompt.pad_text_id
        known[length : length + len(trailing), 0] = trailing
        known[length : length + len(done), 1:] = done
        rows = np.where(known >= 0, known + offsets, np.int32(embedding.zero_row))
        talker, subtalker, vector = prompt.talker, prompt.subtalker, prompt.speaker_vector
        if vector is not None:
            # A code's row to all that follows: summed, rounded and computed again like one.
            rows[prompt.speaker_position, 1] = embedding.speaker_row(slot)
        return cls(
            slot,
            rows,
            np.array(
                [prompt.seed, length, prompt.min_new_tokens, talker.top_k, subtalker.top_k],
                np.int64,
            ),
            np.array(
                [
                    talker.temperature,
                    talker.top_p,
                    talker.repetition_penalty,
                    subtalker.temperature,
                    subtalker.top_p,
                ],
                np.float32,
            ),
            prompt.pad_text_id,
            frames,
            restored,
            None if vector is None else np.ascontiguousarray(vector, np.float32),
        )


def write_arrivals(
    arrivals: Sequence[Arrival], table: SlotTable, embedding: "FrameEmbedding", text_offset: int
) -> None:
    """Fill the slots of `arrivals` in one upload, and clear what those before them left.

    Args:
        arrivals: at least one, no slot twice.
        table: of all slots, whose positions are enough for each of `arrivals`.
        embedding: gets the vectors of cloned voices.
        text_offset: of text ids in the joined table.
    """
    number, longest = len(arrivals), max(len(one.rows) for one in arrivals)
    cloned = [one for one in arrivals if one.vector is not None]
    width = arrivals[0].rows.shape[1]
    ids = arrivals[0].rows[None]
    if number > 1:
        ids = np.full((number, longest, width), embedding.zero_row, np.int32)
        for place, one in enumerate(arrivals):
            ids[place, : len(one.rows)] = one.rows
            ids[place, len(one.rows) :, 0] = one.pad_text_id + text_offset
    parts = [
        np.array([one.slot for one in arrivals], np.int64),
        np.array([embedding.speaker_row(one.slot) for one in cloned], np.int64),
        np.concatenate([one.ints for one in arrivals]),
        np.concatenate([one.floats for one in arrivals]),
        np.array([one.pad_text_id + text_offset for one in arrivals], np.int32),
        ids.ravel(),
        *(one.vector for one in cloned),
    ]
    whole = table.upload(np.concatenate([part.view(np.int32) for part in parts]))
    sizes = [part.nbytes // 4 for part in parts[:6]]
    slots, voices, ints, floats, pads, rows, vectors = whole.split(
        [*sizes, len(whole) - sum(sizes)]
    )
    later = table.ids[:, longest:, 0]
    pads = pads[:, None].expand(number, later.shape[1])
    pairs = (
        (table.ints, ints.view(torch.int64).view(number, -1)),
        (table.floats, floats.view(torch.float32).view(number, -1)),
        (table.ids[:, :longest], rows.view(number, longest, width)),
        (later, pads),
    )
    if number == 1:  # without indices: the quickest, which first audio waits for
        slot = arrivals[0].slot
        for target, values in pairs:
            target[slot] = values[0]
        table.seen[slot] = False
    else:
        slots = slots.view(torch.int64)
        for target, values in pairs:
            target.index_copy_(0, slots, values)
        table.seen.index_fill_(0, slots, False)
    if cloned:
        values = vectors.view(torch.float32).view(len(cloned), -1).to(embedding.weight.dtype)
        embedding.weight.index_copy_(0, voices.view(torch.int64), values)
    for one in arrivals:
        if one.frames:
            _write_history(one, table, embedding.offsets[1])


def _write_history(one: Arrival, table: SlotTable, offset: int) -> None:
    """Put a preempted request's codes back, and mark all group-0 codes made before as seen."""
    start = int(one.ints[1])
    frames = table.ids[one.slot, start : start + one.frames, 1:]
    if one.restored is not None:
        frames.copy_(one.restored)
    table.seen[one.slot].index_fill_(0, frames[:, 0].long() - offset, True)
