"""A list of clips, measured by everything that is there, as lines of JSON and one page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from training.listening.likeness import embedder, shipped_encoder
from training.listening.pictures import draw
from training.listening.recogniser import Recogniser, shipped_model
from training.listening.report import Clip, Ears, Row, summary
from training.listening.sound import rater, shipped_rater


def read(listing: Path, teacher: Path | None) -> list[Clip]:
    """Return the clips of a list: file, text and perhaps the teacher's file, between tabs.

    teacher: a folder that has the teacher's under the same folder and name, for lists without.
    """
    clips = []
    for line in listing.read_text(encoding="utf-8").splitlines():
        file, text, *spoken = line.split("\t")
        clip = Clip(Path(file), text, Path(spoken[0]) if spoken else None)
        if clip.teacher is None and teacher is not None:
            number = int(clip.file.stem)
            named = (
                teacher / clip.file.parent.name / f"{number:0{width}d}.wav" for width in (3, 4)
            )
            clip = replace(clip, teacher=next((each for each in named if each.exists()), None))
        clips.append(clip)
    return clips


def listen(
    listing: Path,
    out: Path,
    teacher: Path | None = None,
    asr: Path | None = None,
    dnsmos: Path | None = None,
    speaker: Path | None = None,
    pictures: int = 0,
) -> None:
    """Write rows.jsonl, summary.json and summary.md of a list into `out`, by voice and in all.

    What is not given is taken from the installed packages, and left out where there is none.
    """
    model, network = asr or shipped_model(), dnsmos or shipped_rater()
    weights = speaker or shipped_encoder()
    ears = Ears(
        Recogniser(model) if model else None,
        rater(network) if network else None,
        embedder(weights) if weights else None,
    )
    out.mkdir(parents=True, exist_ok=True)
    clips, rows = read(listing, teacher), []
    with (out / "rows.jsonl").open("w", encoding="utf-8") as lines:
        for clip in clips:
            rows.append(ears.listen(clip))
            lines.write(json.dumps(asdict(rows[-1]), ensure_ascii=False) + "\n")
            print(_told(len(rows), len(clips), rows[-1]), flush=True)
    voices: dict[str, list[Row]] = {}
    for row in rows:
        voices.setdefault(Path(row.file).parent.name, []).append(row)
    figures = {voice: summary(own) for voice, own in voices.items()} | {"all": summary(rows)}
    (out / "summary.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    (out / "summary.md").write_text(_table(figures), encoding="utf-8")
    print(_table(figures), flush=True)
    drawn: dict[str, int] = {}
    for clip in clips:
        voice = clip.file.parent.name
        if clip.teacher is not None and drawn.get(voice, 0) < pictures:
            drawn[voice] = drawn.get(voice, 0) + 1
            both = {"teacher": clip.teacher, voice: clip.file}
            draw(both, clip.text, out / f"{voice}-{clip.file.stem}.png")


def _told(number: int, of: int, row: Row) -> str:
    if not row.errors:
        return f"{number}/{of}"
    return f"{number}/{of}  {row.errors} of {row.words}  {row.text}  |  {row.heard}"


def _table(figures: dict[str, dict[str, float | int | None]]) -> str:
    columns: Sequence[str] = list(next(iter(figures.values())))
    lines = [f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, own in figures.items():
        cells = ("" if own[column] is None else str(own[column]) for column in columns)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
