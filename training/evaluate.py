"""What a checkpoint says: files of speech and a list of them, for a recogniser to judge.

`tests/parity/test_training.py` holds that the codes are the reference's. A line of a list: file,
text, and where there is one the teacher's file of the same sentence.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from training.chorus import Chorus, Manner
from training.codec import Codec
from training.corpus import Stream
from training.losses import SAMPLE_RATE_HZ


def say(chorus: Chorus, codec: Codec, texts: Sequence[str], out: Path, manner: Manner) -> None:
    """Let every voice speak `texts`; write a list of each into `out`, and of all."""
    voices = tuple(chorus.ids.speakers)
    items = [(text, voice) for voice in voices for text in texts]
    lists: dict[str, list[str]] = {voice: [] for voice in voices}
    for number, ((text, voice), codes) in enumerate(
        zip(items, chorus.speak(items, manner), strict=True)
    ):
        file = out / voice / f"{number % len(texts):03d}.wav"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, _samples(codec, codes), SAMPLE_RATE_HZ)
        lists[voice].append(f"{file}\t{text}\n")
    for voice, lines in lists.items():
        (out / f"{voice}.tsv").write_text("".join(lines), encoding="utf-8")
    everything = [line for lines in lists.values() for line in lines]
    (out / "all.tsv").write_text("".join(everything), encoding="utf-8")


@torch.no_grad()
def _samples(codec: Codec, codes: Tensor) -> np.ndarray:
    if not codes.shape[1]:
        return np.zeros(0, np.float32)
    return codec.decode(*codec.entries_of(codes[None]))[0].clamp(-1, 1).cpu().numpy()


@torch.no_grad()
def resynthesise(codec: Codec, stream: Stream, indices: Sequence[int], out: Path) -> None:
    """Pass sentences of the corpus through the codec alone; write `codec.tsv` and `teacher.tsv`."""
    out.mkdir(parents=True, exist_ok=True)
    codec.eval()
    made_lines, real_lines = [], []
    for index in indices:
        row, wave = stream.rows[index], stream.wave(index)
        semantic, acoustic, _, _ = codec.quantise(wave[None], learn=False)
        made = codec.decode(semantic, acoustic)[0].clamp(-1, 1)
        files = [out / f"{row.id:06d}-{kind}.wav" for kind in ("codec", "teacher")]
        for file, samples in zip(files, (made, wave), strict=True):
            soundfile.write(file, np.asarray(samples.cpu()), SAMPLE_RATE_HZ)
        made_lines.append(f"{files[0]}\t{row.text}\t{files[1]}\n")
        real_lines.append(f"{files[1]}\t{row.text}\n")
    (out / "codec.tsv").write_text("".join(made_lines), encoding="utf-8")
    (out / "teacher.tsv").write_text("".join(real_lines), encoding="utf-8")
