"""What clients call a language, and the name it has in the checkpoints.

Names (English or the language's own), ISO 639-1, -2 and -3 codes and BCP 47 tags lead to the lower
case English name that Qwen3-TTS uses. Codes and tags are read by `langcodes`.
"""

import re
import unicodedata
from collections import Counter
from functools import lru_cache
from typing import Final

import langcodes
from langcodes.tag_parser import LanguageTagError

AUTO: Final = "auto"
# The languages of Qwen3-TTS by ISO 639-1 code: the checkpoint's name, then other names.
_NAMES: Final = {
    "zh": ("chinese", "mandarin", "中文", "汉语", "漢語", "普通话", "zhongwen"),
    "en": ("english",),
    "ja": ("japanese", "日本語", "nihongo"),
    "ko": ("korean", "한국어", "조선말"),
    "de": ("german", "deutsch"),
    "fr": ("french", "français", "francais"),
    "ru": ("russian", "русский"),
    "pt": ("portuguese", "português", "portugues"),
    "es": ("spanish", "español", "espanol", "castellano"),
    "it": ("italian", "italiano"),
}
_CODES: Final = {name: code for code, names in _NAMES.items() for name in names}
_SCRIPTS: Final = (
    ("ja", re.compile("[\u3040-\u30ff]")),
    ("ko", re.compile("[\u1100-\u11ff\uac00-\ud7af]")),
    ("zh", re.compile("[\u3400-\u4dbf\u4e00-\u9fff]")),
    ("ru", re.compile("[\u0400-\u04ff]")),
)
_SCRIPT_SAMPLE_CHARS: Final = 1000
# RFC 5646 asks for room for 35.
_MAX_TAG_CHARS: Final = 64


def language_code(name: str) -> str | None:
    """The ISO 639-1 code of a name, code or tag, or None for what Qwen3-TTS does not speak."""
    wanted = name.strip().casefold()
    if wanted in _CODES:
        return _CODES[wanted]
    return _code_of_tag(wanted) if len(wanted) <= _MAX_TAG_CHARS else None


# Parts of the names of models are looked up here with each request, the same ones every time.
@lru_cache(maxsize=256)
def _code_of_tag(tag: str) -> str | None:
    try:
        tag = langcodes.standardize_tag(tag, macro=True)
    except LanguageTagError:
        return None
    code = tag.split("-", 1)[0]
    return code if code in _NAMES else None


def language_name(name: str) -> str | None:
    """The checkpoints' name of a language; "auto" stays, None for what is not spoken."""
    if name.strip().casefold() == AUTO:
        return AUTO
    code = language_code(name)
    return None if code is None else _NAMES[code][0]


def split_model_name(name: str) -> tuple[str, str | None]:
    """A model's name without a language at its end, and that language: `tts-1-es`, `tts-1-pt-BR`.

    A name that ends in no language of Qwen3-TTS comes back as it is.
    """
    parts = name.strip().split("-")
    for length in (2, 1):  # a language with its region, a language
        language = language_name("-".join(parts[-length:])) if len(parts) > length else None
        if language not in (None, AUTO):
            return "-".join(parts[:-length]), language
    return name, None


def code_of_text(language: str, text: str) -> str:
    """The ISO 639-1 code to split and read `text` by: that of `language`, else its script's.

    Latin script says nothing about the language and counts as English. A guess for rules of
    spelling only; which language is spoken is the model's choice.
    """
    stated = None if language == AUTO else language_code(language)
    if stated is not None:
        return stated
    sample = text[:_SCRIPT_SAMPLE_CHARS]
    return next((code for code, script in _SCRIPTS if script.search(sample)), "en")


def letters_beyond(letters: str, text: str) -> tuple[dict[str, int], int]:
    """The letters of `text` whose base is not one of `letters`, and how many letters it has in all.

    `letters` are in lower case and without accents. Figures, signs and marks are no letters.
    """
    found = {sign: times for sign, times in Counter(text).items() if sign.isalpha()}
    beyond = {sign: times for sign, times in found.items() if not set(_base(sign)) <= set(letters)}
    return beyond, sum(found.values())


def _base(letter: str) -> str:
    return unicodedata.normalize("NFD", letter)[0].casefold()
