"""What is refused although the body is well-formed: the server or the model cannot do it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from serve_app.audio.formats import SAMPLE_RATES_HZ, AudioFormat
from serve_app.errors import InvalidRequest
from serve_app.http.speech.body import SpeechBody
from serve_app.text.languages import AUTO, letters_beyond
from serve_app.text.normalise import Normalisation
from serve_app.text.script import Unit, script
from serve_app.types import ModelCard

# OpenAI's limit on `instructions`.
_MAX_INSTRUCTION_CHARS: Final = 4096
# Of the frames that one generation may have, how many a unit is estimated to take at most.
UNIT_SHARE: Final = 0.8
# Of the letters that a message names.
_SHOWN_LETTERS: Final = 8


def refuse_unavailable(body: SpeechBody, card: ModelCard) -> None:
    """Refuse what other servers have and this one does not: silence would give the wrong audio."""
    if body.stream_format not in (None, "audio", "sse"):
        raise InvalidRequest(
            f"The stream_format '{body.stream_format}' does not exist; available: audio, sse.",
            "stream_format",
            "unsupported_format",
        )
    if body.response_encoding not in (None, "pcm_s16le"):
        raise InvalidRequest(
            f"The response_encoding '{body.response_encoding}' is not available;"
            " available: pcm_s16le.",
            "response_encoding",
            "unsupported_format",
        )
    if body.word_timestamps:
        raise InvalidRequest("'word_timestamps' is not available.", "word_timestamps")
    if body.sample_rate not in (None, card.sample_rate_hz, *SAMPLE_RATES_HZ):
        raise InvalidRequest(
            f"The sample_rate {body.sample_rate} is not available;"
            f" available: {', '.join(map(str, SAMPLE_RATES_HZ))}.",
            "sample_rate",
        )


def checked_format(body: SpeechBody) -> AudioFormat:
    """The format to answer in; OpenAI's default where none is named."""
    formats = [str(served) for served in AudioFormat]
    if body.response_format == "raw":  # Together's name for it
        return AudioFormat.PCM
    if body.response_format and body.response_format not in formats:
        raise InvalidRequest(
            f"The response_format '{body.response_format}' does not exist;"
            f" available: {', '.join(formats)}.",
            "response_format",
            "unsupported_format",
        )
    return AudioFormat(body.response_format or AudioFormat.MP3)


def check_tokens(body: SpeechBody, card: ModelCard) -> None:
    """Refuse limits beyond the card's; what the prompt leaves less room for, the talker clamps."""
    limit = card.max_new_tokens if body.max_new_tokens is None else body.max_new_tokens
    if limit > card.max_new_tokens:
        raise InvalidRequest(
            f"'max_new_tokens' is {limit}, at most {card.max_new_tokens} are allowed.",
            "max_new_tokens",
        )
    if body.min_new_tokens is not None and body.min_new_tokens > limit:
        raise InvalidRequest(
            f"'min_new_tokens' is {body.min_new_tokens}, more than the limit of {limit}.",
            "min_new_tokens",
        )


def checked_text(value: str, card: ModelCard, max_chars: int) -> str:
    """The text to speak, without the white space around it."""
    text = value.strip()
    if not text:
        raise InvalidRequest("'input' must not be empty.", "input", "empty_string")
    check_string(text, "input", card, max_chars)
    return text


def checked_instructions(body: SpeechBody, card: ModelCard) -> str | None:
    """The instructions that reach the model; None where it follows none."""
    text = stated(body.instructions)
    if text is not None:
        check_string(text, "instructions", card, _MAX_INSTRUCTION_CHARS)
    elif card.voice_sources == {"description"}:
        raise InvalidRequest(
            f"The model '{card.name}' needs 'instructions' that describe the voice.",
            "instructions",
        )
    return text if card.supports_instructions else None


def stated(instructions: str | None) -> str | None:
    """Instructions that say something; Home Assistant sends "None" where the user gave none."""
    text = (instructions or "").strip()
    return None if text in ("", "None") else text


def checked_units(
    text: str,
    language: str,
    card: ModelCard,
    options: Any,
    max_unit_frames: float | None = None,
) -> tuple[Unit, ...]:
    """The units of a text that has passed `checked_text`, of at most `max_unit_frames` each.

    `options` is the request's `normalization_options`, of which anything unknown is ignored.
    """
    room = unit_room(card)
    if max_unit_frames is not None:
        room = min(room, max_unit_frames)
    found = found_units(text, "input", language, card, options, room)
    if not found:
        raise InvalidRequest("'input' has nothing that can be spoken.", "input", "empty_string")
    return found


def unit_room(card: ModelCard) -> float:
    """The most codec frames of a unit, by estimate."""
    room = UNIT_SHARE * card.max_new_tokens
    longest = card.text_needs.max_unit_frames
    return room if longest is None else min(room, longest)


def found_units(
    text: str,
    param: str,
    language: str,
    card: ModelCard,
    options: Any,
    max_frames: float,
    *,
    is_whole: bool = True,
) -> tuple[Unit, ...]:
    """The units of `text`, of at most `max_frames` each; none where nothing can be spoken.

    What a checkpoint needs is done unless `options` say no. Of a part of a text (not `is_whole`)
    that is no reading as Markdown: a code block may have begun before it.

    Raises:
        InvalidRequest: it has a control of the model, or the model was not taught its letters.
    """
    wanted = options if isinstance(options, Mapping) else {}
    needed = card.text_needs.plain_words

    def is_wanted(name: str, default: bool) -> bool:
        value = wanted.get(name)
        return value is True or (default and value is not False)

    normalisation = Normalisation(
        markdown=is_wanted("strip_markdown", needed and is_whole),
        emoji=is_wanted("strip_emoji", needed),
        words=wanted.get("normalize") is True,
        plain=needed and wanted.get("normalize") is not False,
    )
    spoken = [name for name in card.languages if name != AUTO]
    if language == AUTO and len(spoken) == 1:
        (language,) = spoken
    found = script(text, language, max_frames, normalisation)
    for unit in found:
        # Leaving out what is invisible may have put one together.
        refuse_controls(unit.text, param, card)
    beyond, _ = _beyond(found, card)
    if beyond:
        # What puts figures in words adds letters.
        as_written = replace(normalisation, words=False, plain=False)
        _, num_letters = _beyond(script(text, language, max_frames, as_written), card)
        if 2 * sum(beyond.values()) > num_letters:
            shown = "".join(list(beyond)[:_SHOWN_LETTERS])
            raise InvalidRequest(
                f"'{param}' is in letters that '{card.name}' was not taught ('{shown}')."
                f" It speaks: {', '.join(spoken)}.",
                param,
            )
    return found


def _beyond(units: Sequence[Unit], card: ModelCard) -> tuple[dict[str, int], int]:
    """The letters of `units` that the checkpoint was not taught, and how many there are in all."""
    letters = card.text_needs.letters
    return letters_beyond(letters, "".join(unit.text for unit in units)) if letters else ({}, 0)


def refuse_controls(text: str, param: str, card: ModelCard) -> None:
    """Refuse what the model's tokenizer would read as one of its controls."""
    found = next((control for control in card.control_strings if control in text), None)
    if found is not None:
        raise InvalidRequest(
            f"'{param}' contains the control string '{found}' of the model.", param
        )


def check_string(text: str, param: str, card: ModelCard, max_chars: int) -> None:
    """Refuse what is too long, no Unicode, or a control of the model."""
    if len(text) > max_chars:
        raise InvalidRequest(
            f"'{param}' has {len(text)} characters, at most {max_chars} are allowed.",
            param,
            "string_above_max_length",
        )
    refuse_controls(text, param, card)
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidRequest(f"'{param}' is not valid Unicode: half of a surrogate pair.", param)
