"""The teacher's speech on disk, and in memory as one long stream.

`audio-*.s16` holds raw little-endian samples, `manifest-*.jsonl` one row for each sentence in it:
text, voice, offset and length, the teacher's phonemes with the time that each takes.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

FRAME_SAMPLES: Final = 1920
SLOTS: Final = 4
"""Phoneme labels in a frame, 20 ms each."""
NUM_LABELS: Final = 178
"""Phonemes of the teacher; 0 is silence at the edges."""
TEACHER_STEP_SAMPLES: Final = 600
"""What one unit of the teacher's durations lasts."""


@dataclass(frozen=True)
class Utterance:
    """One spoken sentence.

    offset, samples: where its audio lies in `file`, in samples.
    phonemes, steps: the teacher's ids and durations (in 600 samples), edges included.
    cut: samples that were trimmed from the teacher's audio before the first that is kept.
    """

    id: int
    text: str
    voice: str
    file: str
    offset: int
    samples: int
    phonemes: tuple[int, ...]
    steps: tuple[int, ...]
    cut: int

    def row(self) -> str:
        """Return the manifest's line."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @property
    def frames(self) -> int:
        """Frames of 1920 samples, the last one filled up."""
        return -(-self.samples // FRAME_SAMPLES)

    def labels(self) -> np.ndarray:
        """Phoneme in the middle of each 20 ms: uint8 [frames, 4]."""
        ends = np.cumsum(self.steps) * TEACHER_STEP_SAMPLES
        slot = FRAME_SAMPLES // SLOTS
        middles = self.cut + np.arange(self.frames * SLOTS) * slot + slot // 2
        index = np.searchsorted(ends, middles, side="right")
        ids = np.array([*self.phonemes, 0], np.uint8)
        return ids[np.minimum(index, len(self.phonemes))].reshape(-1, SLOTS)


def utterances(folder: Path) -> Iterator[Utterance]:
    """Yield the rows of all manifests; a last line cut short by a crash does not count."""
    for manifest in sorted(folder.glob("manifest-*.jsonl")):
        for line in manifest.read_text(encoding="utf-8").splitlines():
            try:
                row: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            row["phonemes"], row["steps"] = tuple(row["phonemes"]), tuple(row["steps"])
            yield Utterance(**row)


def _mapped(file: Path) -> np.ndarray:
    """Samples of a file, read where they are looked at."""
    return np.memmap(file, "<i2", "r") if file.stat().st_size else np.empty(0, "<i2")


@dataclass(frozen=True)
class Stream:
    """All speech end to end, each sentence filled up to whole frames.

    audio: int16 [frames * 1920]. labels: uint8 [frames, 4]. starts: int64 [sentences + 1], in
    frames. codes: uint8 [frames, groups], where they are known (see `with_codes`).
    """

    rows: tuple[Utterance, ...]
    audio: Tensor
    labels: Tensor
    starts: Tensor
    codes: Tensor | None = None

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        without: Collection[int] = frozenset(),
        hours: float | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> "Stream":
        """Read a corpus.

        Args:
            folder: the corpus's.
            device: where it is to live.
            without: ids of sentences to leave out.
            hours: how much to read at most, the lowest ids first.
            share: a part and the number of parts that the sentences are dealt out to.

        Raises:
            FileNotFoundError: there is no speech.
        """
        found = (row for row in utterances(folder) if row.id not in without)
        rows = sorted(found, key=lambda row: row.id)[share[0] :: share[1]]
        if hours is not None:
            ends = np.cumsum([row.samples for row in rows]) / (3600 * 12.5 * FRAME_SAMPLES)
            rows = rows[: max(1, int(np.searchsorted(ends, hours)))]
        files = {name: _mapped(folder / name) for name in {row.file for row in rows}}
        rows = [row for row in rows if row.offset + row.samples <= len(files[row.file])]
        if not rows:
            raise FileNotFoundError(f"no speech in {folder}: give the teacher more minutes")
        starts = np.concatenate([[0], np.cumsum([row.frames for row in rows])])
        audio = np.zeros(int(starts[-1]) * FRAME_SAMPLES, np.int16)
        for row, start in zip(rows, starts, strict=False):
            begin = int(start) * FRAME_SAMPLES
            audio[begin : begin + row.samples] = files[row.file][row.offset :][: row.samples]
        labels = np.concatenate([row.labels() for row in rows])
        return cls(
            tuple(rows),
            torch.from_numpy(audio).to(device),
            torch.from_numpy(labels).to(device),
            torch.from_numpy(starts),
        )

    def with_codes(self, ids: np.ndarray, starts: np.ndarray, codes: np.ndarray) -> "Stream":
        """Return the same with codes: uint8 [frames, groups] of sentences by their `ids`.

        Raises:
            KeyError: a sentence has none.
        """
        place = {int(number): index for index, number in enumerate(ids)}
        pieces = []
        for row in self.rows:
            index = place[row.id]
            pieces.append(codes[starts[index] : starts[index + 1]])
        joined = torch.from_numpy(np.concatenate(pieces)).to(self.audio.device)
        return replace(self, codes=joined)

    @property
    def frames(self) -> int:
        return len(self.labels)

    def _where(
        self, batch: int, frames: int, generator: torch.Generator, in_frame: int = 1
    ) -> Tensor:
        """Return which parts of a frame, of `in_frame`, are drawn: int64 [B, frames * in_frame]."""
        device, parts = self.audio.device, frames * in_frame
        last = self.frames * in_frame - parts
        first = torch.randint(last, (batch,), generator=generator, device=device)
        return first[:, None] + torch.arange(parts, device=device)

    def _waves(self, where: Tensor, in_frame: int = 1) -> Tensor:
        return self.audio.view(-1, FRAME_SAMPLES // in_frame)[where].flatten(1).float() / 32768

    def coded_crops(
        self, batch: int, frames: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `crops` does, and codes int64 [B, groups, frames].

        Raises:
            ValueError: no codes are known.
        """
        if self.codes is None:
            raise ValueError("the corpus has no codes yet: encode it first")
        where = self._where(batch, frames, generator)
        codes = self.codes[where].long().transpose(1, 2)
        return self._waves(where), self.labels[where].long(), codes

    def crops(self, batch: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random pieces: float32 [B, frames * 1920] and labels int64 [B, frames, 4].

        They begin at any 20 ms, while each sentence of the corpus begins with a frame: a codec that
        knew no other place would say the first sound of a sentence worse elsewhere.
        """
        where = self._where(batch, frames, generator, SLOTS)
        labels = self.labels.flatten()[where].long()
        return self._waves(where, SLOTS), labels.view(batch, frames, SLOTS)

    def wave(self, index: int) -> Tensor:
        """Return the samples of one sentence: float32 [frames * 1920]."""
        begin, end = (int(self.starts[index + i]) * FRAME_SAMPLES for i in (0, 1))
        return self.audio[begin:end].float() / 32768
