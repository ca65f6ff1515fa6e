"""From the text of a request to the units that the model is given one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from serve_app.text.languages import code_of_text
from serve_app.text.markup import Passage, Pause, read_markup
from serve_app.text.normalise import Normalisation, clean, normalised, without_markdown
from serve_app.text.splitting import units


@dataclass(frozen=True, slots=True)
class Unit:
    """One synthesis of a script.

    Attributes:
        rate: how fast it is read, 1 as the model reads it.
        pause_before_s, pause_after_s: silence around it.
    """

    text: str
    rate: float = 1.0
    pause_before_s: float = 0.0
    pause_after_s: float = 0.0


def script(
    text: str, language: str, max_frames: float, options: Normalisation | None = None
) -> tuple[Unit, ...]:
    """The units of `text`, in order; none where nothing of it can be spoken.

    A text without tags that one generation can hold is one unit.

    `language` is a checkpoint's name of it, or "auto"; `max_frames` limits the codec frames of a
    unit, by estimate.
    """
    options = options or Normalisation()
    if options.markdown:
        text = without_markdown(text)
    text = clean(text)
    code = code_of_text(language, text)
    found: list[Unit] = []
    pause_s = 0.0
    parts = read_markup(text, code)
    for part in parts:
        if isinstance(part, Pause):
            pause_s += part.seconds
            continue
        # Between two tags a full stop alone is nothing to say; a text of it is for the model.
        if len(parts) > 1 and not any(map(str.isalnum, part.text)):
            continue
        for unit in _read(part, code, max_frames, options):
            found.append(replace(unit, pause_before_s=pause_s) if pause_s else unit)
            pause_s = 0.0
    if found and pause_s:
        found[-1] = replace(found[-1], pause_after_s=found[-1].pause_after_s + pause_s)
    return tuple(found)


def _read(passage: Passage, code: str, max_frames: float, options: Normalisation) -> Iterator[Unit]:
    text = normalised(passage.text, code, options)
    for piece in units(text, code, max_frames) if text else ():
        yield Unit(piece.text, passage.rate, pause_after_s=piece.pause_s)
