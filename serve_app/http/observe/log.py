"""The line that the log has for each request: what was asked for and what became of it.

It has neither the text nor a key. Anything that a client wrote is quoted where it is not plain.
"""

import json
import logging
import re
from typing import Any, Final

from serve_app.http.observe.record import Record

_PLAIN: Final = re.compile(r"[\w.:/@+-]+", re.ASCII)

logger = logging.getLogger("serve_app.requests")


class _Form:
    """One for the process: audio is logged where nobody knows of any configuration."""

    as_json = False


def choose(as_json: bool) -> None:
    """How lines are written from now on."""
    _Form.as_json = as_json


def write(record: Record, duration_s: float) -> None:
    fields = fields_of(record, duration_s)
    text = json.dumps(fields, separators=(",", ":")) if _Form.as_json else as_text(fields)
    logger.log(logging.INFO if (record.status or 0) < 500 else logging.WARNING, "%s", text)


def fields_of(record: Record, duration_s: float) -> dict[str, Any]:
    """What is known, under names that stay; what is not is left out."""
    made = record.audio_s > 0
    fields = {
        "id": record.request_id,
        "method": record.method,
        "path": record.path,
        "status": record.status,
        "key": record.key,
        "model": record.model,
        "voice": record.voice,
        "language": record.language,
        "format": record.format,
        "transport": record.transport,
        "characters": record.characters or None,
        "duration_ms": round(1000 * duration_s, 1),
        "first_audio_ms": _ms(record.first_audio_s),
        "audio_s": round(record.audio_s, 3) if made else None,
        "rtf": round(duration_s / record.audio_s, 4) if made else None,
        "finish_reason": record.finish_reason,
        "broke": record.broke,
        "error": record.error,
        "resumed": record.resumed or None,
        "silent_ms": _ms(record.silent_s or None),
        "waited_ms": _ms(record.waited_s or None),
        "retry": record.retry or None,
        **{f"{name}_ms": _ms(seconds) for name, seconds in record.timings},
        "client": record.client or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def as_text(fields: dict[str, Any]) -> str:
    """`name=value` for each, values in quotes where they are more than a word."""
    return " ".join(f"{name}={_quoted(str(value))}" for name, value in fields.items())


def _quoted(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)
