"""Conversation items: which of their texts is to be spoken."""

from collections.abc import Mapping
from typing import Any, Final

from serve_app.errors import InvalidRequest

_TEXTS: Final = ("input_text", "text")


def spoken_text(item: Any, where: str) -> str | None:
    """The text of a user's message, or None where an item is something else.

    Raises:
        InvalidRequest: it is no item.
    """
    if not isinstance(item, dict):
        raise InvalidRequest(f"'{where}' must be an object.", where)
    if item.get("type") != "message" or item.get("role") not in (None, "user"):
        return None
    parts = item.get("content")
    if not isinstance(parts, list):
        raise InvalidRequest(f"'{where}.content' must be a list.", f"{where}.content")
    texts = [part.get("text") for part in parts if isinstance(part, dict) and _is_text(part)]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"'{where}.content.text' must be a string.", f"{where}.content")
    return "".join(map(str, texts))


def texts_of(items: Any, where: str) -> str:
    """The texts of the messages in `items`, one after the other; raises what `spoken_text` raises
    and InvalidRequest for what is no list.
    """
    if not isinstance(items, list):
        raise InvalidRequest(f"'{where}' must be a list.", where)
    found = [spoken_text(item, f"{where}.{number}") for number, item in enumerate(items)]
    return "\n".join(text for text in found if text)


def _is_text(part: Mapping[str, Any]) -> bool:
    return part.get("type") in _TEXTS
