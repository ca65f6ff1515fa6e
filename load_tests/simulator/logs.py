"""A load as ingresses have logged it: when requests came that were served, and what they made."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

# As Serve begins a line: level, time, deployment, replica.
_LINE: Final = re.compile(r"\w+ (?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) \S+ \S+ (?P<said>.*)")
_FIELD: Final = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')
_FRAME_S: Final = 0.08


@dataclass(frozen=True, slots=True)
class Logged:
    """Requests in the order in which they came.

    Attributes:
        rows: when each came, in seconds since 1970, and its codec frames.
        refused: how many besides were answered 429.
    """

    rows: tuple[tuple[float, int], ...]
    refused: int


def read(files: Iterable[Path]) -> Logged:
    """What the logs of several ingresses say together.

    Raises:
        ValueError: no request was served.
    """
    rows: list[tuple[float, int]] = []
    refused = 0
    for file in files:
        with file.open(encoding="utf-8", errors="replace") as lines:
            for ended_s, fields in _requests(lines):
                audio_s = float(fields.get("audio_s", 0))
                if audio_s:
                    came_s = ended_s - float(fields["duration_ms"]) / 1000
                    rows.append((came_s, max(1, round(audio_s / _FRAME_S))))
                refused += str(fields.get("status")) == "429"
    if not rows:
        raise ValueError("the logs tell of no request that was served")
    return Logged(tuple(sorted(rows)), refused)


def _requests(lines: Iterable[str]) -> Iterator[tuple[float, dict[str, Any]]]:
    """When each ended, in seconds since 1970, and its fields, of lines that are a request's."""
    for line in lines:
        found = _said(line)
        if found is None or "duration_ms" not in found[1]:
            continue
        at, said = found
        fields = _json(said) or dict(_FIELD.findall(said))
        if "duration_ms" in fields:
            yield datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp(), fields


def _said(line: str) -> tuple[str, str] | None:
    """Time and message, as Serve writes them with either `encoding`."""
    record = _json(line)
    if record is not None:
        at, said = record.get("asctime"), record.get("message")
        return (at, said) if isinstance(at, str) and isinstance(said, str) else None
    match = _LINE.match(line)
    return None if match is None else (match["at"], match["said"].removeprefix("-- "))


def _json(text: str) -> dict[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
