"""Batches for the talker: sentences in a random text mode, padded to one of a few fixed shapes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from training.codes import CodeBook
from training.layout import ABSENT, PromptIds, Rows, lay_out
from training.text import Splitter

LENGTHS: Final = (64, 96, 128, 176, 240, 320)
"""Positions that a batch may be long; longer sentences are left out."""
_PROCESSES: Final = max(1, min(5, (os.cpu_count() or 2) // 4))


@dataclass(frozen=True)
class Batch:
    """B sentences, L positions; integers, -1 where there is none: small ones until `to`.

    text [B, L]. codes [B, L, groups]. target [B, L]. next_codes [B, L, groups] and next_labels
    [B, L, 4]: of the frame that each position leads to. spoken: bool [B]. chosen [N]: which of the
    B * L positions the code predictor is taught on.
    """

    text: Tensor
    codes: Tensor
    target: Tensor
    next_codes: Tensor
    next_labels: Tensor
    spoken: Tensor
    chosen: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, in the order of the fields."""
        return (
            self.text,
            self.codes,
            self.target,
            self.next_codes,
            self.next_labels,
            self.spoken,
            self.chosen,
        )

    def to(self, device: torch.device) -> "Batch":
        """Copy to `device`, as int64."""
        parts = self.tensors
        if device.type == "cuda":
            parts = tuple(part.pin_memory() for part in parts)
        moved = (part.to(device, non_blocking=True) for part in parts)
        return Batch(*(part if part.dtype == torch.bool else part.long() for part in moved))


@dataclass(frozen=True)
class BatchOptions:
    """What a batch is made of.

    positions: padded positions of a batch, at most. predictor_rows: see `Batch.chosen`. The others
    are shares of the sentences.
    """

    positions: int = 6144
    predictor_rows: int = 2048
    streaming: float = 0.45
    language: float = 0.8
    varied_split: float = 0.5


@dataclass(frozen=True)
class _Laid:
    """A sentence that waits for others of its length."""

    index: int
    rows: Rows


class Batches(IterableDataset[Batch]):
    """Draws batches without end; `loader` does so in processes of their own.

    Args:
        indices: the sentences to draw from.
        seed: decides all of it, with the number of the process.
    """

    def __init__(
        self,
        book: CodeBook,
        indices: np.ndarray,
        ids: PromptIds,
        splitter: Splitter,
        options: BatchOptions,
        seed: int,
    ) -> None:
        self._book, self._indices, self._ids = book, indices, ids
        self._splitter, self._options = splitter, options
        self._seed = seed

    def _lay_out(self, index: int, rng: np.random.Generator) -> _Laid:
        text, options = self._book.texts[index], self._options
        varied = rng.random() < options.varied_split
        tokens = self._splitter.varied(text) if varied else self._splitter.exact.encode(text)
        begin, end = self._book.starts[index], self._book.starts[index + 1]
        rows = lay_out(
            self._ids,
            tokens,
            self._book.codes[begin:end].astype(np.int64),
            self._book.voices[index],
            streaming=bool(rng.random() < options.streaming),
            language=bool(rng.random() < options.language),
        )
        return _Laid(index, rows)

    def _joined(self, laid: list[_Laid], length: int, rng: np.random.Generator) -> Batch:
        groups = self._book.codes.shape[1]
        shape = (len(laid), length)
        text, target = (np.full(shape, ABSENT, np.int16) for _ in range(2))
        codes, following = (np.full((*shape, groups), ABSENT, np.int16) for _ in range(2))
        next_labels = np.full((*shape, self._book.labels.shape[1]), ABSENT, np.int16)
        for i, one in enumerate(laid):
            rows = one.rows
            size = len(rows.text)
            text[i, :size], target[i, :size], codes[i, :size] = rows.text, rows.target, rows.codes
            leads = np.flatnonzero(rows.frame != ABSENT)
            where = self._book.starts[one.index] + rows.frame[leads]
            following[i, leads] = self._book.codes[where]
            next_labels[i, leads] = self._book.labels[where]
        spoken = self._book.spoken[[one.index for one in laid]]
        is_frame = following[..., 0] != ABSENT
        candidates = np.flatnonzero(is_frame & spoken[:, None])
        if not len(candidates):  # a batch by chance without speech
            candidates = np.flatnonzero(is_frame)
        count = self._options.predictor_rows
        chosen = rng.choice(candidates, count, replace=len(candidates) < count)
        arrays = (text, codes, target, following, next_labels, spoken, chosen)
        return Batch(*(torch.from_numpy(array) for array in arrays))

    def draw(self) -> Iterator[Batch]:
        """Yield batches, epoch after epoch."""
        worker = get_worker_info()
        rng = np.random.default_rng((self._seed, worker.id if worker else 0))
        waiting: dict[int, list[_Laid]] = {length: [] for length in LENGTHS}
        while True:
            for index in rng.permutation(self._indices):
                laid = self._lay_out(int(index), rng)
                length = next((n for n in LENGTHS if n >= len(laid.rows.text)), None)
                if length is None:
                    continue
                waiting[length].append(laid)
                if len(waiting[length]) == self._options.positions // length:
                    yield self._joined(waiting[length], length, rng)
                    waiting[length] = []

    def __iter__(self) -> Iterator[Batch]:
        return self.draw()

    def loader(self, processes: int = _PROCESSES) -> DataLoader[Batch]:
        """Return what draws ahead, as one thread lays out fewer sentences than a GPU learns from.

        Memory is not pinned there: that would break a graph that is recorded meanwhile.
        VOICE_LOADERS in the environment is another number of processes; 0 draws in this one.
        """
        processes = int(os.environ.get("VOICE_LOADERS", processes))
        ahead = 4 if processes else None
        return DataLoader(self, batch_size=None, num_workers=processes, prefetch_factor=ahead)
