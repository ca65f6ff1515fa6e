"""What is known of the request that this task works on.

The record is made by the outermost layer and found by whatever runs below it, also in tasks and
threads that were begun there, without being passed along.
"""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(slots=True)
class Record:
    """One request, filled while it is worked on; what several texts share adds up.

    Attributes:
        request_id: of the log, the stages and the response's header `x-request-id`.
        key, priority: of the API key; None: nobody asked for one.
        first_audio_s: from the request's arrival to its first audio byte.
        timings: of the first audio, by stage, in seconds.
        resumed: how often a stream lost a stage and went on.
        silent_s: the longest that a stream was silent for it.
        waited_s: how long the request waited for room.
        full: whether it was refused because nobody could be let in.
        retry: which attempt of its client this is, after the first; OpenAI's clients say so.
    """

    request_id: str = "-"
    method: str = ""
    path: str = ""
    client: str = ""
    key: str | None = None
    priority: int = 0
    status: int | None = None
    model: str | None = None
    voice: str | None = None
    language: str | None = None
    format: str | None = None
    transport: str | None = None
    characters: int = 0
    first_audio_s: float | None = None
    audio_s: float = 0.0
    finish_reason: str | None = None
    broke: str | None = None
    error: str | None = None
    timings: Sequence[tuple[str, float]] = ()
    resumed: int = 0
    silent_s: float = 0.0
    waited_s: float = 0.0
    full: bool = False
    retry: int = 0


_CURRENT: Final[ContextVar[Record | None]] = ContextVar("record", default=None)


def current() -> Record:
    """The record of this task's request; outside of one, a record that nobody reads."""
    return _CURRENT.get() or Record()


def is_within_request() -> bool:
    return _CURRENT.get() is not None


def begin(record: Record) -> None:
    """Make it the record of this task, and of those that it begins from now on."""
    _CURRENT.set(record)
