"""The corpus as codes: what the talker learns from, small enough to keep (16 bytes a frame)."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.codec import Codec
from training.corpus import Stream
from training.plan import ONE_IN_HELD_OUT

_MOST_SENTENCES = 512


def is_held_out(number: Any) -> Any:
    """Whether a sentence (or each of an array of them) is kept from training, by its id."""
    return number % ONE_IN_HELD_OUT == 0


def held_out_ids() -> range:
    """All ids of sentences that are kept from training."""
    return range(0, sys.maxsize, ONE_IN_HELD_OUT)


@dataclass(frozen=True)
class CodeBook:
    """All sentences as codes.

    codes: uint8 [frames, groups]. labels: uint8 [frames, 4] phonemes. starts: int64
    [sentences + 1], in frames.
    ids, voices, texts: by sentence. spoken: bool [sentences], whether the teacher said it (see
    `imagined`).
    """

    codes: np.ndarray
    labels: np.ndarray
    starts: np.ndarray
    ids: np.ndarray
    spoken: np.ndarray
    voices: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def load_all(cls, folder: Path) -> "CodeBook | None":
        """Read `codes.npz` and what several processes wrote beside it; None where there is none."""
        files = sorted(folder.glob("codes*.npz"))
        return cls.all_of([cls.load(file) for file in files]) if files else None

    @classmethod
    def all_of(cls, books: Sequence["CodeBook"]) -> "CodeBook":
        """Return the sentences of all."""
        before = np.cumsum([0, *(book.starts[-1] for book in books)])
        starts = [book.starts[:-1] + first for book, first in zip(books, before, strict=False)]
        return cls(
            np.concatenate([book.codes for book in books]),
            np.concatenate([book.labels for book in books]),
            np.concatenate([*starts, before[-1:]]),
            np.concatenate([book.ids for book in books]),
            np.concatenate([book.spoken for book in books]),
            tuple(voice for book in books for voice in book.voices),
            tuple(text for book in books for text in book.texts),
        )

    @property
    def is_held_out(self) -> np.ndarray:
        """Sentences that no training step sees: bool [sentences]."""
        return is_held_out(self.ids)

    def save(self, file: Path) -> None:
        """Write one compressed file."""
        about = json.dumps({"voices": self.voices, "texts": self.texts})
        np.savez_compressed(
            file,
            codes=self.codes,
            labels=self.labels,
            starts=self.starts,
            ids=self.ids,
            spoken=self.spoken,
            about=np.frombuffer(about.encode(), np.uint8),
        )

    @classmethod
    def load(cls, file: Path) -> "CodeBook":
        """Read what `save` wrote."""
        with np.load(file) as stored:
            about = json.loads(stored["about"].tobytes())
            arrays = {name: stored[name] for name in ("codes", "labels", "starts", "ids", "spoken")}
        return cls(**arrays, voices=tuple(about["voices"]), texts=tuple(about["texts"]))


def encode(codec: Codec, stream: Stream, batch_frames: int = 12_000) -> CodeBook:
    """Encode every sentence alone, as the released encoder would; `batch_frames` at a time."""
    codec.eval()
    sizes = np.diff(stream.starts.numpy())
    order = np.argsort(sizes)
    codes = np.empty((stream.frames, codec.books.usage.shape[0]), np.uint8)
    begin = 0
    while begin < len(order):
        longest = sizes[order[begin : begin + _MOST_SENTENCES]]
        count = int((longest * np.arange(1, len(longest) + 1) <= batch_frames).sum())
        chosen = order[begin : begin + max(1, count)]
        found = codec.encode([stream.wave(int(i)) for i in chosen])
        rows = torch.cat(found, dim=1).T.to(torch.uint8).cpu().numpy()
        where = np.concatenate([np.arange(sizes[i]) + int(stream.starts[i]) for i in chosen])
        codes[where] = rows
        begin += len(chosen)
    return CodeBook(
        codes,
        stream.labels.cpu().numpy(),
        stream.starts.numpy(),
        np.array([row.id for row in stream.rows]),
        np.ones(len(stream.rows), bool),
        tuple(row.voice for row in stream.rows),
        tuple(row.text for row in stream.rows),
    )
