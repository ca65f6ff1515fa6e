"""What a checkpoint says: files of speech and a list of them, for a recogniser to judge.

The reference package speaks, so that what is heard is what the released code makes of the
checkpoint. A line of the list: file, text, and where there is one the teacher's file of the same
sentence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from training.codec import Codec
from training.corpus import Stream
from training.losses import SAMPLE_RATE_HZ
from training.reference import load_reference


@dataclass(frozen=True)
class Manner:
    """How to speak: text all at once or with the frames, the likeliest codes or drawn ones."""

    streaming: bool = False
    greedy: bool = True
    seed: int = 0
    max_frames: int = 400


def say(checkpoint: Path, texts: Sequence[str], out: Path, manner: Manner) -> None:
    """Let every voice speak `texts`; write `voice.tsv` lists into `out`."""
    load_reference()
    from qwen_tts import Qwen3TTSModel

    model: Any = Qwen3TTSModel.from_pretrained(
        str(checkpoint), dtype=torch.float32, attn_implementation="eager"
    )
    drawn = not manner.greedy
    for voice in model.model.config.talker_config.spk_id:
        folder = out / voice
        folder.mkdir(parents=True, exist_ok=True)
        lines = []
        for number, text in enumerate(texts):
            torch.manual_seed(manner.seed + number)
            waves, rate = model.generate_custom_voice(
                text=text,
                speaker=voice,
                language="English",
                non_streaming_mode=not manner.streaming,
                do_sample=drawn,
                subtalker_dosample=drawn,
                max_new_tokens=manner.max_frames,
            )
            file = folder / f"{number:03d}.wav"
            soundfile.write(file, waves[0], rate)
            lines.append(f"{file}\t{text}\n")
        (out / f"{voice}.tsv").write_text("".join(lines), encoding="utf-8")


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
