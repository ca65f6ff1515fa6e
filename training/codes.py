"""The corpus as codes: what the talker learns from, small enough to keep (16 bytes a frame)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.codec import Codec
from training.corpus import Stream

_ONE_IN_HELD_OUT = 50


def is_held_out(number: Any) -> Any:
    """Whether a sentence (or each of an array of them) is kept from training, by its id."""
    return number % _ONE_IN_HELD_OUT == 0


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

    @property
    def is_held_out(self) -> np.ndarray:
        """Sentences that no training step sees: bool [sentences]."""
        return is_held_out(self.ids)

    def joined(self, other: "CodeBook") -> "CodeBook":
        """Return the sentences of both."""
        return CodeBook(
            np.concatenate([self.codes, other.codes]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.starts, other.starts[1:] + self.starts[-1]]),
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.spoken, other.spoken]),
            self.voices + other.voices,
            self.texts + other.texts,
        )

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


def encode(codec: Codec, stream: Stream, batch: int = 48) -> CodeBook:
    """Encode every sentence alone, as the released encoder would."""
    codec.eval()
    order = np.argsort(np.diff(stream.starts.numpy()))
    codes = np.empty((stream.frames, codec.books.usage.shape[0]), np.uint8)
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        found = codec.encode([stream.wave(int(i)) for i in chosen])
        for index, rows in zip(chosen, found, strict=True):
            first, end = (int(stream.starts[index + i]) for i in (0, 1))
            codes[first:end] = rows.T.to(torch.uint8).cpu().numpy()
    return CodeBook(
        codes,
        stream.labels.cpu().numpy(),
        stream.starts.numpy(),
        np.array([row.id for row in stream.rows]),
        np.ones(len(stream.rows), bool),
        tuple(row.voice for row in stream.rows),
        tuple(row.text for row in stream.rows),
    )
