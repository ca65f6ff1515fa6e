"""The teacher's speech on disk, and in memory as one long stream.

`audio-*.s16` holds raw little-endian samples, `manifest-*.jsonl` one row for each sentence in it:
text, voice, offset and length, the teacher's phonemes with the time that each takes.
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True)
class Stream:
    """All speech end to end, each sentence filled up to whole frames.

    audio: int16 [frames * 1920]. labels: uint8 [frames, 4]. starts: int64 [sentences + 1], in
    frames.
    """

    rows: tuple[Utterance, ...]
    audio: Tensor
    labels: Tensor
    starts: Tensor

    @classmethod
    def load(
        cls, folder: Path, device: torch.device, without: Collection[int] = frozenset()
    ) -> "Stream":
        """Read a corpus onto `device`, but for the sentences of some ids.

        Raises:
            FileNotFoundError: there is no speech.
        """
        found = (row for row in utterances(folder) if row.id not in without)
        rows = sorted(found, key=lambda row: row.id)
        files = {name: np.fromfile(folder / name, "<i2") for name in {row.file for row in rows}}
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

    @property
    def frames(self) -> int:
        return len(self.labels)

    def crops(self, batch: int, frames: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return random pieces: float32 [B, frames * 1920] and labels int64 [B, frames, 4]."""
        device = self.audio.device
        first = torch.randint(self.frames - frames, (batch,), generator=generator, device=device)
        where = first[:, None] + torch.arange(frames, device=device)
        wave = self.audio.view(-1, FRAME_SAMPLES)[where].flatten(1).float() / 32768
        return wave, self.labels[where].long()

    def wave(self, index: int) -> Tensor:
        """Return the samples of one sentence: float32 [frames * 1920]."""
        begin, end = (int(self.starts[index + i]) * FRAME_SAMPLES for i in (0, 1))
        return self.audio[begin:end].float() / 32768
