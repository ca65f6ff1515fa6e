"""From the text of a request to the units that the model is given one after the other."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from serve_app.text.english.plain import plain_english
from serve_app.text.languages import code_of_text
from serve_app.text.markup import Passage, Pause, read_markup
from serve_app.text.normalise import (
    Normalisation,
    clean,
    in_words,
    named_emoji,
    without_emoji,
    without_markdown,
)
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
    text = clean(_shown(text, options))
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


def _shown(text: str, options: Normalisation) -> str:
    """A whole text without Markdown and emoji, where that is asked for: before it is cut."""
    shown = without_markdown(text) if options.markdown else text
    shown = without_emoji(shown) if options.emoji else shown
    if options.plain and not any(map(str.isalnum, shown)):
        return named_emoji(text)
    return shown


def _read(passage: Passage, code: str, max_frames: float, options: Normalisation) -> Iterator[Unit]:
    is_plain = options.plain and code == "en"
    text = passage.text
    if is_plain:
        text = plain_english(text)
    elif options.words:
        text = in_words(text, code)
    text = clean(text)
    for piece in units(text, code, max_frames) if text else ():
        # A line break is for the pause between units; within one it is a sign like others.
        spoken = " ".join(piece.text.split()) if is_plain else piece.text
        # Of stops and signs alone who was taught single sentences makes sounds that are no words.
        if is_plain and not any(map(str.isalnum, spoken)):
            continue
        yield Unit(spoken, passage.rate, pause_after_s=piece.pause_s)
