"""The names that clients have for models, voices and languages, and what is served under each."""

from collections.abc import Iterable
from typing import Final

from serve_app.text.languages import AUTO, language_name, split_model_name
from serve_app.types import ModelCard

MODEL_ALIASES: Final = (
    "tts-1",
    "tts-1-hd",
    "gpt-4o-mini-tts",
    "gpt-4o-mini-tts-2025-12-15",
    "qwen3-tts",
)
# OpenAI's voice names, and the Qwen speaker that comes nearest.
VOICE_ALIASES: Final = {
    "alloy": "vivian",
    "ash": "aiden",
    "ballad": "ryan",
    "cedar": "uncle_fu",
    "coral": "serena",
    "echo": "ryan",
    "fable": "aiden",
    "marin": "serena",
    "nova": "vivian",
    "onyx": "uncle_fu",
    "sage": "sohee",
    "shimmer": "ono_anna",
    "verse": "aiden",
}
_DEFAULT_VOICE: Final = "alloy"
TASK_NAMES: Final = {"custom_voice": "CustomVoice", "voice_design": "VoiceDesign", "base": "Base"}


def known_as(name: str, path: str) -> frozenset[str]:
    """The names of a model, in lower case: the served one, its hub id or folder, and that's end."""
    path = path.rstrip("/")
    names = (name, path, path.rsplit("/", 1)[-1])
    return frozenset(known.strip().casefold() for known in names if known)


def find_card(name: str, cards: Iterable[ModelCard]) -> ModelCard | None:
    """The card of a model name: the served name, the hub id or folder."""
    wanted = name.strip().casefold()
    return next((card for card in cards if wanted in known_as(card.name, card.path)), None)


def stands_for_any(name: str) -> bool:
    """Whether a name is one of OpenAI's, which mean no checkpoint, with a language or without."""
    names = (name.strip().casefold(), split_model_name(name)[0].strip().casefold())
    return any(known in MODEL_ALIASES for known in names)


def find_voice(name: str | None, card: ModelCard) -> str | None:
    """The voice of `card` that a name stands for, the default where there is no name, or None."""
    wanted = (name or "").strip().casefold()
    voices = {voice.casefold(): voice for voice in card.voices}
    if wanted in voices:
        return voices[wanted]
    return alias_target(_DEFAULT_VOICE if wanted in ("", "default") else wanted, card)


def alias_target(name: str, card: ModelCard) -> str | None:
    """The voice of `card` that another name stands for, or None.

    The checkpoint's own list comes first. Without one, and without the usual speakers, each of
    OpenAI's names stands for a fixed voice.
    """
    if name in card.voice_aliases:
        return card.voice_aliases[name]
    if name not in VOICE_ALIASES or not card.voices:
        return None
    voices = {voice.casefold(): voice for voice in card.voices}
    position = list(VOICE_ALIASES).index(name)
    return voices.get(VOICE_ALIASES[name], card.voices[position % len(card.voices)])


def alias_names(card: ModelCard) -> tuple[str, ...]:
    """Every other name that a voice of `card` has: OpenAI's, and the checkpoint's own."""
    return (*VOICE_ALIASES, *(name for name in card.voice_aliases if name not in VOICE_ALIASES))


def find_language(name: str | None, card: ModelCard) -> str | None:
    """The language of `card` that a lower-case name, code or tag stands for, or None; none is
    "auto".
    """
    if not name or name == AUTO:
        return AUTO
    served = {language.casefold(): language for language in card.languages}
    return served.get(name) or served.get(language_name(name) or "")
