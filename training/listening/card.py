"""The model card of a trained checkpoint, from the reports of `listen`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_COLUMNS: Final = {
    "clips": "clips",
    "wer_percent": "WER %",
    "perfect": "without an error",
    "mos": "DNSMOS",
    "pitch_hz": "F0 Hz",
    "duration_ratio": "length / teacher's",
    "within_15_percent": "within 15 %",
    "likeness": "likeness to teacher",
    "astray": "empty, cut or endless",
}
_HEAD: Final = """\
---
language: en
license: apache-2.0
pipeline_tag: text-to-speech
---

# Small English voices

{count} English voices ({voices}) in the on-disk format of Qwen3-TTS 12Hz CustomVoice,
{size:.1f} MB: talker, code predictor and speech tokenizer with encoder and decoder, trained
from nothing by the recipe in `training/` of this project. The released checkpoints are larger,
better and know more languages.

* **Trained on synthetic speech** made with Kokoro-82M (hexgrad, Apache-2.0), voices {teachers}.
  The recipe uses no recordings of people; whose speech Kokoro learnt from, its publisher says.
  Texts: WordNet 3.0, prose in the public domain, and sentences that the recipe makes up.
* Made on single sentences in plain words: `text_needs.json` has the server cut longer texts and
  write figures, signs and capitals as words, in English.
* English only, in the letters that `text_needs.json` has; the server refuses text in others.
  Instructions are accepted and have no effect.
* To try, test and measure a server with. Say that it is a machine that speaks.
* OpenAI's voice names stand for these voices (`voice_aliases.json`).

## Measured

`python -m training speak-with` through the server's own stages, then `python -m training listen`:
words by moonshine tiny-en, an independent recogniser; DNSMOS P.835 overall; likeness by
Resemblyzer's encoder, where above 0.8 is the same voice. Medians, but for errors, which are pooled
over all words.
"""


def write_card(checkpoint: Path, reports: Mapping[str, Path], teachers: Mapping[str, str]) -> None:
    """Write README.md beside the weights.

    Args:
        checkpoint: finished.
        reports: a name and the folder that `listen` has written, in the order of the card.
        teachers: the teacher's voice of each of ours.
    """
    size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    text = _HEAD.format(
        count=len(teachers),
        voices=", ".join(teachers),
        teachers=", ".join(teachers.values()),
        size=size / 1e6,
    )
    for name, folder in reports.items():
        figures = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        text += f"\n### {name}\n\n{_table(figures)}"
    (checkpoint / "README.md").write_text(text, encoding="utf-8")


def _table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [
        name for name in _COLUMNS if any(own.get(name) is not None for own in figures.values())
    ]
    lines = [f"| | {' | '.join(_COLUMNS[name] for name in shown)} |"]
    lines.append("|---" * (len(shown) + 1) + "|")
    for voice, own in figures.items():
        cells = ("" if own.get(name) is None else str(own[name]) for name in shown)
        lines.append(f"| {voice} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
