"""The teacher's phonemes of English text, by the library of espeak-ng.

Kokoro writes affricates and diphthongs as one letter each, which espeak-ng writes as two, tied.
"""

import ctypes
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

# Where each letter stands in the teacher's table, as its configuration lists them.
LETTERS: Final[Mapping[str, int]] = {
    ";": 1, ":": 2, ",": 3, ".": 4, "!": 5, "?": 6, "—": 9, "…": 10, '"': 11, "(": 12, ")": 13,
    "“": 14, "”": 15, " ": 16, "A": 24, "I": 25, "O": 31, "Q": 33, "S": 35, "T": 36, "W": 39,
    "Y": 41, "ᵊ": 42, "a": 43, "b": 44, "c": 45, "d": 46, "e": 47, "f": 48, "h": 50, "i": 51,
    "j": 52, "k": 53, "l": 54, "m": 55, "n": 56, "o": 57, "p": 58, "q": 59, "r": 60, "s": 61,
    "t": 62, "u": 63, "v": 64, "w": 65, "x": 66, "y": 67, "z": 68, "ɑ": 69, "ɐ": 70, "ɒ": 71,
    "æ": 72, "ɔ": 76, "ð": 81, "ʤ": 82, "ə": 83, "ɚ": 85, "ɛ": 86, "ɜ": 87, "ɡ": 92, "ɪ": 102,
    "ŋ": 112, "θ": 119, "ɹ": 123, "ɾ": 125, "ʃ": 131, "ʧ": 133, "ʊ": 135, "ʌ": 138, "ʒ": 147,
    "ʔ": 148, "ˈ": 156, "ˌ": 157, "ː": 158, "ᵻ": 177,
}  # fmt: skip
# Applied in this order. "^" is the tie.
_SHARED: Final = (
    ("ʔˌn\u0329", "tᵊn"), ("ʔn\u0329", "tᵊn"),
    ("a^ɪ", "I"), ("a^ʊ", "W"), ("e^ɪ", "A"), ("ɔ^ɪ", "Y"), ("d^ʒ", "ʤ"), ("t^ʃ", "ʧ"),
    ("ə^l", "ᵊl"), ("ɚɹ", "əɹ"), ("ɚ", "əɹ"), ("ɐ", "ə"), ("ɬ", "l"), ("x", "k"), ("ç", "k"),
    ("r", "ɹ"),
)  # fmt: skip
_BRITISH: Final = (("e^ə", "ɛː"), ("i^ə", "ɪə"), ("iə", "ɪə"), ("ə^ʊ", "Q"))
_AMERICAN: Final = (
    ("o^ʊ", "O"), ("ɜː", "ɜɹ"), ("ɜɹɹ", "ɜɹ"), ("ɪə", "iə"), ("ː", ""), ("ɾ", "T"), ("ʔ", "t"),
)  # fmt: skip
_REST: Final = (("e", "A"), ("o", "ɔ"), ("^", ""))
_SYLLABIC: Final = re.compile("(\\S)\u0329")
# The library joins "in the", "of the" and their like into one word, which the teacher never saw.
_JOINED: Final = re.compile("(?<=[bdfɡklmnpstvzŋɹ])(?=ð[əɪi](?:\\s|$))")
_MARKS: Final = ".,!?;:…“”()"
_UTF8: Final = 1
_IPA_WITH_TIES: Final = 0x82 | ord("^") << 8
_SYNCHRONOUS: Final = 2


class Espeak:
    """Reads English, American or British; one at a time in a process."""

    def __init__(self) -> None:
        import espeakng_loader  # pyright: ignore[reportMissingImports]

        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        if self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0) < 0:
            raise RuntimeError(f"espeak-ng does not start with {data!r}")
        self._read = self._library.espeak_TextToPhonemes
        self._read.restype = ctypes.c_char_p
        self._read.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]

    def phonemes(self, text: str, british: bool) -> str:
        """Return the teacher's letters, with the text's own punctuation."""
        # The library calls British English by its folder; it keeps the last voice silently if
        # the answer is not looked at.
        if self._library.espeak_SetVoiceByName(b"gmw/en" if british else b"en-us"):
            raise RuntimeError("espeak-ng lacks a voice")
        text = re.sub(r'"([^"]*)"', "“\\1”", text).replace('"', "")
        parts = [part.strip() for part in re.split(f"([{_MARKS}])", text) if part.strip()]
        said = " ".join(part if part in _MARKS else self._plain(part, british) for part in parts)
        return re.sub(r" (?=[.,!?;:…”)])|(?<=[“(]) ", "", said)

    def _plain(self, text: str, british: bool) -> str:
        rest, clauses = ctypes.c_char_p(text.encode()), []
        while rest.value:
            clauses.append(self._read(ctypes.byref(rest), _UTF8, _IPA_WITH_TIES).decode())
        return letters_of(" ".join(clauses), british)


def letters_of(ipa: str, british: bool) -> str:
    """Return the teacher's letters for IPA with ties."""
    ipa = _replaced(ipa, _SHARED)
    ipa = _JOINED.sub(" ", _SYLLABIC.sub(r"ᵊ\1", ipa))
    return _replaced(ipa, (*(_BRITISH if british else _AMERICAN), *_REST))


def ids_of(letters: str) -> list[int]:
    """The teacher's ids; signs that it does not know are left out."""
    return [LETTERS[letter] for letter in letters if letter in LETTERS]


def _replaced(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    for old, new in pairs:
        text = text.replace(old, new)
    return text
