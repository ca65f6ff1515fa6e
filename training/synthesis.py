"""Speak a plan with the teacher, in many processes; what is spoken is not spoken again."""

import multiprocessing
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from training.corpus import TEACHER_STEP_SAMPLES, Utterance, utterances
from training.plan import TEACHER_VOICES, Planned, read

Speak = Callable[[Sequence[int], np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Token ids and a style row [256] to samples float32 [N] and durations [ids + 2] in 600 samples."""

_RATE_HZ: Final = 24_000
_LEAD_S: Final = 0.08
_TAIL_S: Final = 0.20
_AUDIBLE: Final = 0.01
_LOUDNESS: Final = 0.1
_PEAK: Final = 0.97
_FADE_SAMPLES: Final = 120
_PACE_S: Final = (0.02, 0.25)


@dataclass(frozen=True)
class Synthesis:
    """What the processes are told.

    model: the teacher's file. voices: folder of its `*.bin` style tables, float32 [510, 256].
    """

    plan: Path
    out: Path
    model: Path
    voices: Path
    device: str
    processes: int
    minutes: float


def level(audio: np.ndarray) -> tuple[np.ndarray, int] | None:
    """Trim silence and set the loudness; return int16 samples and how many were cut in front."""
    heard = np.flatnonzero(np.abs(audio) > _AUDIBLE)
    if not heard.size:
        return None
    begin = max(0, int(heard[0]) - int(_LEAD_S * _RATE_HZ))
    piece = audio[begin : int(heard[-1]) + int(_TAIL_S * _RATE_HZ)].astype(np.float32)
    loud = piece[np.abs(piece) > _AUDIBLE]
    gain = min(_LOUDNESS / float(np.sqrt(np.mean(loud**2))), _PEAK / float(np.abs(piece).max()))
    ramp = np.linspace(0, 1, _FADE_SAMPLES, dtype=np.float32)
    piece = piece * gain
    piece[:_FADE_SAMPLES] *= ramp
    piece[-_FADE_SAMPLES:] *= ramp[::-1]
    return np.round(piece * 32767).astype("<i2"), begin


def _work(rank: int, items: Sequence[Planned], job: Synthesis) -> None:
    from training.teacher import Teacher

    speak: Speak = Teacher(job.model, job.device)
    styles = {
        voice: np.fromfile(job.voices / f"{name}.bin", "<f4").reshape(-1, 256)
        for voice, name in TEACHER_VOICES.items()
    }
    ends = time.monotonic() + 60 * job.minutes
    tag = f"{rank:03d}-{time.time_ns() // 1_000_000}"
    audio_file, manifest = job.out / f"audio-{tag}.s16", job.out / f"manifest-{tag}.jsonl"
    with audio_file.open("wb") as sound, manifest.open("w", encoding="utf-8") as listing:
        for item in items:
            if time.monotonic() > ends:
                break
            audio, steps = speak(item.tokens, styles[item.voice][len(item.tokens) - 1])
            levelled = level(audio)
            if levelled is None or len(audio) != int(steps.sum()) * TEACHER_STEP_SAMPLES:
                continue
            samples, cut = levelled
            pace = (len(samples) / _RATE_HZ - _LEAD_S - _TAIL_S) / len(item.tokens)
            if not _PACE_S[0] <= pace <= _PACE_S[1]:
                continue
            row = Utterance(
                id=item.id,
                text=item.text,
                voice=item.voice,
                file=audio_file.name,
                offset=sound.tell() // 2,
                samples=len(samples),
                phonemes=(0, *item.tokens, 0),
                steps=tuple(int(s) for s in steps),
                cut=cut,
            )
            sound.write(samples.tobytes())
            sound.flush()
            listing.write(row.row() + "\n")
            listing.flush()


def run(job: Synthesis, known: Collection[int]) -> None:
    """Speak what of the plan is neither spoken nor `known`, for so many minutes."""
    job.out.mkdir(parents=True, exist_ok=True)
    done = {row.id for row in utterances(job.out)} | set(known)
    todo = [item for item in read(job.plan) if item.id not in done]
    print(f"{len(done)} sentences spoken, {len(todo)} to speak", flush=True)
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(target=_work, args=(rank, todo[rank :: job.processes], job))
        for rank in range(job.processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    rows = list(utterances(job.out))
    hours = sum(row.samples for row in rows) / _RATE_HZ / 3600
    print(f"{len(rows)} sentences, {hours:.2f} hours in {job.out}", flush=True)
    if any(worker.exitcode for worker in workers):
        raise RuntimeError("a process failed; the same command goes on")
