"""Names that people give: what they may be, and when two are the same."""

import hashlib
import re
import secrets
import unicodedata
from typing import Final

from serve_app.errors import InvalidRequest

MAX_NAME_CHARS: Final = 64
MAX_TEXT_CHARS: Final = 4096
_VOICE_ID: Final = re.compile(r"voice_[0-9a-f]{32}")
_CONSENT_ID: Final = re.compile(r"cons_[0-9a-f]{32}")
# The time to normalise text can grow with the square of its length: of what is much longer than it
# may be, not even that is done.
_MOST_TIMES: Final = 3
# Besides letters, marks and numbers of any script.
_OTHERS: Final = " _.'-"
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,16}(?:-[A-Za-z0-9]{1,8}){0,4}")


def new_voice_id() -> str:
    return f"voice_{secrets.token_hex(16)}"


def new_consent_id() -> str:
    return f"cons_{secrets.token_hex(16)}"


def is_voice_id(text: str) -> bool:
    return _VOICE_ID.fullmatch(text) is not None


def is_consent_id(text: str) -> bool:
    return _CONSENT_ID.fullmatch(text) is not None


def folded(name: str) -> str:
    """What two names have in common that are the same to a reader: case, width, white space.

    What is too long to be a name is the same as nothing else.
    """
    if len(name) > _MOST_TIMES * MAX_NAME_CHARS:
        return name
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def key_of(owner: str | None, name: str = "") -> str:
    """The name of the file of what `owner` calls `name`: never the name itself."""
    text = f"{owner or ''}\n{folded(name)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def checked_name(value: object, param: str = "name") -> str:
    """A name, tidied.

    Letters of any script, digits, spaces and `_ . ' -`; none of what would make it a path, an id or
    a blend.

    Raises:
        InvalidRequest: it is none.
    """
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{param}' must be a string.", param)
    is_short = len(value) <= _MOST_TIMES * MAX_NAME_CHARS
    parts = unicodedata.normalize("NFC", value).split(" ") if is_short else [value]
    name = " ".join(part for part in parts if part)
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise InvalidRequest(f"'{param}' must have 1 to {MAX_NAME_CHARS} characters.", param)
    is_fit = all(char in _OTHERS or unicodedata.category(char)[0] in "LMN" for char in name)
    if not is_fit or not name[0].isalnum():
        raise InvalidRequest(
            f"'{param}' may have letters, digits, spaces and _ . ' - only, and begins with a letter"
            " or digit.",
            param,
        )
    if is_voice_id(name) or is_consent_id(name) or folded(name) == "default":
        raise InvalidRequest(f"'{param}' cannot be '{name}'.", param)
    return name


def checked_text(value: object, param: str) -> str:
    """A text about a voice, as a transcript.

    Raises:
        InvalidRequest: it is too long, or no text.
    """
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param)
    if not isinstance(value, str):
        raise InvalidRequest(f"'{param}' must be a string.", param)
    is_short = len(value) <= _MOST_TIMES * MAX_TEXT_CHARS
    text = unicodedata.normalize("NFC", value).strip() if is_short else value
    if len(text) > MAX_TEXT_CHARS:
        raise InvalidRequest(
            f"'{param}' has {len(text)} characters, at most {MAX_TEXT_CHARS} are allowed.",
            param,
            "string_above_max_length",
        )
    if any(unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t" for char in text):
        raise InvalidRequest(f"'{param}' has characters that cannot be printed.", param)
    return text


def checked_language(value: object, param: str = "language") -> str:
    """A language tag or name.

    Raises:
        InvalidRequest: it is none.
    """
    if value is None:
        raise InvalidRequest(f"Missing required parameter: '{param}'.", param)
    if not isinstance(value, str) or not _LANGUAGE.fullmatch(value.strip()):
        raise InvalidRequest(f"'{param}' must be a language, such as en-US.", param)
    return value.strip()
