"""Speak a plan with the teacher, many sentences at once; what is spoken is not spoken again."""

import random
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import torch
from torch import Tensor

from training.corpus import TEACHER_STEP_SAMPLES, Utterance, utterances
from training.plan import TEACHER_VOICES, Planned, read
from training.teacher import Kokoro, Reading, load

_RATE_HZ: Final = 24_000
_LEAD_S: Final = 0.08
_TAIL_S: Final = 0.20
_AUDIBLE: Final = 0.01
_LOUDNESS: Final = 0.1
_PEAK: Final = 0.97
_FADE_SAMPLES: Final = 120
_PACE_S: Final = (0.02, 0.25)
# Tokens that are read at a time, padding included.
_TOKENS: Final = 65_536
_THREADS: Final = 4
_PROGRESS_S: Final = 10.0


@dataclass(frozen=True)
class Synthesis:
    """What is spoken, with what, where and for how long.

    model: the teacher's file. voices: folder of its `*.bin` style tables, float32 [510, 256].
    share: a part and the number of parts that the plan is dealt out to, by the ids.
    """

    plan: Path
    out: Path
    model: Path
    voices: Path
    device: str
    minutes: float
    share: tuple[int, int] = (0, 1)


@dataclass(frozen=True)
class Portion:
    """What is put together.

    sentences: batches are made of so many at a time, so that a plan is spoken in its order.
    steps: of 25 ms, in a batch, padding included.
    """

    sentences: int
    steps: int


# Five hours and ten minutes: a GPU needs some 15 GB for it.
_GPU: Final = Portion(4096, 24_000)
_CPU: Final = Portion(32, 800)


@dataclass(frozen=True)
class Batch:
    """Sentences that are spoken together, each padded to `size` steps."""

    items: tuple[Planned, ...]
    readings: tuple[Reading, ...]
    size: int


def level(audio: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Trim silence and set the loudness; return int16 samples and how many were cut in front.

    What is silent, or no number somewhere, gives None.
    """
    size = np.abs(audio)
    if not _AUDIBLE < size.max() < np.inf:
        return None
    heard = np.flatnonzero(size > _AUDIBLE)
    begin = max(0, int(heard[0]) - int(_LEAD_S * _RATE_HZ))
    piece = audio[begin : int(heard[-1]) + int(_TAIL_S * _RATE_HZ)].astype(np.float32)
    loud = piece[np.abs(piece) > _AUDIBLE]
    gain = min(_LOUDNESS / float(np.sqrt(np.mean(loud**2))), _PEAK / float(np.abs(piece).max()))
    ramp = np.linspace(0, 1, _FADE_SAMPLES, dtype=np.float32)
    piece = piece * gain
    piece[:_FADE_SAMPLES] *= ramp
    piece[-_FADE_SAMPLES:] *= ramp[::-1]
    return np.round(piece * 32767).astype("<i2"), begin


def _is_paced(samples: int, phonemes: int) -> bool:
    pace = (samples / _RATE_HZ - _LEAD_S - _TAIL_S) / phonemes
    return _PACE_S[0] <= pace <= _PACE_S[1]


def padded(steps: int) -> int:
    """Round up to one of eight sizes an octave: a GPU chooses its kernels anew for each size."""
    grain = max(1, 1 << max(0, steps.bit_length() - 4))
    return -(-steps // grain) * grain


def batches(items: Sequence[Planned], readings: Sequence[Reading], limit: int) -> list[Batch]:
    """Put sentences of similar length together, `limit` steps at most, in a random order.

    Were the long ones first, a stop in the middle would leave long sentences only.
    """
    pairs = sorted(zip(items, readings, strict=True), key=lambda pair: -pair[1].length)
    found = []
    while pairs:
        size = padded(pairs[0][1].length)
        count = max(1, limit // size)
        together, pairs = pairs[:count], pairs[count:]
        sentences, scripts = zip(*together, strict=True)
        found.append(Batch(sentences, scripts, size))
    random.Random(len(items)).shuffle(found)
    return found


class _Writer:
    """Levels and writes what was spoken while the next batch is spoken."""

    def __init__(self, out: Path, part: int) -> None:
        tag = f"{time.time_ns() // 1_000_000}-{part}"
        self._sound = (out / f"audio-{tag}.s16").open("wb")
        self._listing = (out / f"manifest-{tag}.jsonl").open("w", encoding="utf-8")
        self._writing, self._levelling = ThreadPoolExecutor(1), ThreadPoolExecutor(_THREADS)
        self._pending: deque[Future[None]] = deque()
        self.samples = self.left_out = 0

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            while self._pending:
                self._pending.popleft().result()
        finally:
            self._writing.shutdown()
            self._levelling.shutdown()
            self._sound.close()
            self._listing.close()

    def put(self, batch: Batch, audio: Tensor) -> None:
        """Take float32 [B, N] on its device; wait until the batch before is written."""
        self._pending.append(self._writing.submit(self._write, batch, *_on_the_way(audio)))
        if len(self._pending) > 1:
            self._pending.popleft().result()

    def _write(self, batch: Batch, audio: Tensor, copied: torch.cuda.Event | None) -> None:
        if copied is not None:
            copied.synchronize()
        whole = [reading.length * TEACHER_STEP_SAMPLES for reading in batch.readings]
        rows = [row[:samples] for row, samples in zip(audio.numpy(), whole, strict=True)]
        levelled = list(self._levelling.map(level, rows))
        lines = []
        for item, reading, piece in zip(batch.items, batch.readings, levelled, strict=True):
            if piece is None or not _is_paced(len(piece[0]), len(item.tokens)):
                self.left_out += 1
                continue
            samples, cut = piece
            row = Utterance(
                id=item.id,
                text=item.text,
                voice=item.voice,
                file=Path(self._sound.name).name,
                offset=self._sound.tell() // 2,
                samples=len(samples),
                phonemes=(0, *item.tokens, 0),
                steps=reading.steps,
                cut=cut,
            )
            self._sound.write(samples.tobytes())
            self.samples += len(samples)
            lines.append(row.row() + "\n")
        # A row counts only once its sound is there.
        self._sound.flush()
        self._listing.writelines(lines)
        self._listing.flush()


def _on_the_way(audio: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Begin to copy to the host; return what will hold it and what says when it does."""
    if not audio.is_cuda:
        return audio, None
    copy = torch.empty(audio.shape, dtype=audio.dtype, pin_memory=True)
    copy.copy_(audio, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


def _read(teacher: Kokoro, items: Sequence[Planned], styles: Mapping[str, Tensor]) -> list[Reading]:
    """Read sentences in batches of similar length; return them in the order given."""
    order = sorted(range(len(items)), key=lambda index: len(items[index].tokens))
    found: dict[int, Reading] = {}
    while order:
        count = max(1, _TOKENS // (len(items[order[-1]].tokens) + 2))
        together, order = order[-count:], order[:-count]
        chosen = [items[index] for index in together]
        tokens = [torch.tensor([0, *item.tokens, 0]) for item in chosen]
        rows = torch.stack([styles[item.voice][len(item.tokens) - 1] for item in chosen])
        found.update(zip(together, teacher.read(tokens, rows), strict=True))
    return [found[index] for index in range(len(items))]


def _spoken(
    teacher: Kokoro,
    todo: Sequence[Planned],
    styles: Mapping[str, Tensor],
    portion: Portion,
    ends: float,
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield what is spoken, as the GPU is asked for it, until the time is over."""
    for begin in range(0, len(todo), portion.sentences):
        items = todo[begin : begin + portion.sentences]
        for batch in batches(items, _read(teacher, items, styles), portion.steps):
            if time.monotonic() > ends:
                return
            yield batch, teacher.speak(list(batch.readings), batch.size)


@torch.inference_mode()
def speak(
    teacher: Kokoro,
    styles: Mapping[str, Tensor],
    todo: Sequence[Planned],
    out: Path,
    portion: Portion,
    ends: float,
    part: int = 0,
) -> None:
    """Speak sentences into new files in `out` until `ends`, by the monotonic clock.

    `styles` are the voices' tables, [510, 2 * style] each, on the teacher's device. `part` tells
    the files of processes apart that speak at the same time.
    """
    told = start = time.monotonic()
    with _Writer(out, part) as writer:
        for batch, audio in _spoken(teacher, todo, styles, portion, ends):
            writer.put(batch, audio)
            if time.monotonic() - told > _PROGRESS_S:
                told = time.monotonic()
                _tell(writer.samples, told - start)
    _tell(writer.samples, time.monotonic() - start)
    print(f"{writer.left_out} sentences left out: silent, broken or at an absurd pace", flush=True)


def _tell(samples: int, seconds: float) -> None:
    hours = samples / _RATE_HZ / 3600
    print(f"{hours:.2f} hours in {seconds:.0f} s: {60 * hours / seconds:.2f} a minute", flush=True)


def own(plan: Iterable[Planned], share: tuple[int, int]) -> Iterator[Planned]:
    """Yield the part of a plan that a process speaks; what others have spoken moves nothing."""
    part, parts = share
    return (item for item in plan if item.id % parts == part)


def run(job: Synthesis, known: Collection[int]) -> None:
    """Speak what of the plan is neither spoken nor `known`, for so many minutes."""
    ends = time.monotonic() + 60 * job.minutes
    job.out.mkdir(parents=True, exist_ok=True)
    done = {row.id for row in utterances(job.out)} | set(known)
    todo = [item for item in own(read(job.plan), job.share) if item.id not in done]
    print(f"{len(done)} sentences spoken, {len(todo)} to speak", flush=True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False  # a few dozen sizes, each seldom
    teacher = load(job.model, job.device)
    tables = {
        voice: np.fromfile(job.voices / f"{name}.bin", "<f4").reshape(-1, 2 * teacher.shape.style)
        for voice, name in TEACHER_VOICES.items()
    }
    styles = {voice: torch.from_numpy(table).to(job.device) for voice, table in tables.items()}
    speak(teacher, styles, todo, job.out, _CPU if job.device == "cpu" else _GPU, ends, job.share[0])
    rows = list(utterances(job.out))
    hours = sum(row.samples for row in rows) / _RATE_HZ / 3600
    print(f"{len(rows)} sentences, {hours:.2f} hours in {job.out}", flush=True)
