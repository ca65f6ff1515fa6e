"""Values from the objects of the library, which another release or somebody's hand may have
written: what is no value here is left out, and must never be in the way of others.
"""

import json
import logging
import types
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from serve_app.voices.values import FACTS, Alias, Consent, Default, Fact, StoredVoice

_KINDS: Final[Mapping[str, type[StoredVoice | Consent | Alias | Default]]] = {
    "voices": StoredVoice,
    "consents": Consent,
    "aliases": Alias,
    "defaults": Default,
}

# No time, size or duration is larger: the year 10,000 in seconds, beyond which there are no dates.
_LARGEST: Final = 253402300800

logger = logging.getLogger(__name__)


class Wrong:
    """What an object holds of which the library can make nothing."""


WRONG: Final = Wrong()
Value: TypeAlias = StoredVoice | Consent | Alias | Default | Fact


def is_read(path: str) -> bool:
    """Whether this release knows what an object of this path is."""
    kind, _, rest = path.partition("/")
    return kind in _KINDS and "/" in rest


def read(path: str, data: bytes) -> Value | Wrong:
    """What an object that `is_read` holds: by its path a value, or a fact of one.

    WRONG, after a line of log, where it holds none. Fields of a newer server are left out.
    """
    kind = _KINDS[path.partition("/")[0]]
    folder, _, fact = path.rpartition("/")[0].partition("/facts/")
    try:
        content = json.loads(data)
        if not isinstance(content, dict):
            raise TypeError(f"it is {_shown(content)}, no mapping")
        if fact:
            value = content.get("value")
            _check({fact: value}, _types(kind) if fact in FACTS else {})
            return Fact(value)
        stated = {name: content[name] for name in _types(kind) if name in content}
        _check(stated, _types(kind))
        value = kind(**stated)
        if isinstance(value, StoredVoice | Consent) and folder.rpartition("/")[2] != value.id:
            raise ValueError(f"id is {_shown(value.id)}")
        return value
    except (ValueError, TypeError, RecursionError) as error:
        logger.error("the voice library leaves out %s, which stays there: %s", path, error)
        return WRONG


def _check(stated: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name, value in stated.items():
        if name in wanted and not _fits(value, wanted[name]):
            raise TypeError(f"{name} is {_shown(value)}")


@cache
def _types(kind: type[Any]) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _fits(value: Any, wanted: Any) -> bool:
    """Whether `value` is of the type that a field states, and within what can be worked with."""
    origin = get_origin(wanted)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    if wanted is type(None):
        return value is None
    if wanted is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if wanted is int:
        return isinstance(value, int) and 0 <= value < _LARGEST
    if wanted is float:
        return isinstance(value, int | float) and 0 <= value < _LARGEST
    return isinstance(value, str) and _can_be_sent(value)


def _can_be_sent(text: str) -> bool:
    """JSON may have half of a character, which no answer can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    return repr(value)[:80]
