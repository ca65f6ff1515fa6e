"""The histories of the speech decoder's layers, of many streams in one arena."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

# Row parts start at multiples of this many values, so that vectorised loads stay aligned.
_ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Where each named history lies in a row of a `DecoderState`: offset in values, and shape."""

    parts: Mapping[str, tuple[int, tuple[int, ...]]]
    size: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "StateLayout":
        """Lay the parts one after the other."""
        parts, offset = {}, 0
        for name, shape in shapes.items():
            parts[name] = (offset, shape)
            offset += -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
        return cls(parts, offset)


@dataclass(frozen=True, slots=True)
class DecoderState:
    """The histories of all layers for some rows: an arena of stream slots, or one step's batch.

    position: int64 [rows], frames decoded so far.
    values: model dtype [rows, layout.size]; all zero at the start of a stream. One flat row per
        stream, so that gathering and scattering a batch is one kernel each.
    """

    layout: StateLayout
    position: Tensor
    values: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """View one part of every row: [rows, *shape]."""
        offset, shape = self.layout.parts[name]
        return self.values.narrow(1, offset, math.prod(shape)).unflatten(1, shape)

    @property
    def num_rows(self) -> int:
        return self.values.shape[0]

    def gather(self, slots: Tensor) -> "DecoderState":
        """Copy the rows `slots` (int64 [B]) out."""
        # Eight bytes at a time: indexing kernels move one element per thread.
        values = self.values.view(torch.int64)[slots].view(self.values.dtype)
        return DecoderState(self.layout, self.position[slots], values)

    def scatter(self, slots: Tensor, rows: "DecoderState") -> None:
        """Copy `rows` back to `slots`; of a slot named twice one of the rows survives."""
        self.position.index_copy_(0, slots, rows.position)
        wide = rows.values.view(torch.int64)
        self.values.view(torch.int64).index_copy_(0, slots, wide)

    def reset(self, slot: int) -> None:
        """Put one row at the start of a stream."""
        self.position[slot].zero_()
        self.values[slot].zero_()
