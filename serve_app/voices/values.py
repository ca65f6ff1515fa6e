"""What the library keeps of a voice, and what its callers are: plain values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final, Literal, TypeVar

# What a voice was made of.
Source = Literal["audio_sample", "embedding", "prompt"]
FACTS: Final = ("name", "transcript", "language", "description", "shared")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: the name of the API key, None for nobody in particular; whether it is one of those
    that the operator lets change everything.
    """

    name: str | None = None
    is_admin: bool = False


@dataclass(frozen=True, slots=True)
class StoredVoice:
    """A voice of the library.

    The first fields never change; those after `duration_s` are facts that are changed one by one.

    Attributes:
        owner: name of the key that made it; None: made without one, so everybody's.
        vector_size: width of the vector of a voice that was brought as one; it has no recording.
        file_size, mime_type, digest: of what was uploaded; the digest is SHA-256.
        prompt: the description that a designed voice was made from.
        transcript: what is said in the recording; None: unknown.
        shared: whether others than its owner may speak with it.
    """

    id: str
    created_at: int
    owner: str | None
    source: Source
    consent: str | None
    file_size: int
    mime_type: str
    digest: str
    duration_s: float
    name: str
    transcript: str | None = None
    language: str | None = None
    description: str | None = None
    shared: bool = False
    vector_size: int | None = None
    prompt: str | None = None

    def is_open_to(self, caller: Caller) -> bool:
        """Whether `caller` may see it and speak with it."""
        return self.shared or self.may_change(caller)

    def may_change(self, caller: Caller) -> bool:
        return self.owner in (None, caller.name) or caller.is_admin


@dataclass(frozen=True, slots=True)
class Change:
    """New facts of a voice; None: as it was. An empty text takes the fact away."""

    name: str | None = None
    transcript: str | None = None
    language: str | None = None
    description: str | None = None
    shared: bool | None = None

    def facts(self) -> Mapping[str, Any]:
        """Those that are stated."""
        stated = ((name, getattr(self, name)) for name in FACTS)
        return {name: None if value == "" else value for name, value in stated if value is not None}


@dataclass(frozen=True, slots=True)
class Consent:
    """A recording in which somebody agrees that their voice is used."""

    id: str
    created_at: int
    owner: str | None
    name: str
    language: str
    digest: str
    duration_s: float

    def is_open_to(self, caller: Caller) -> bool:
        return self.owner in (None, caller.name) or caller.is_admin


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name, for whoever made it or, made by an admin or without a key, for everybody.

    Attributes:
        target: id of a stored voice, or the name of one of a checkpoint's speakers.
    """

    name: str
    owner: str | None
    target: str


@dataclass(frozen=True, slots=True)
class Default:
    """The voice that answers where none is named: to a key, or for None to everybody.

    Attributes:
        voice: id; None: none does any more.
    """

    owner: str | None = None
    voice: str | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """What something of a voice or a consent is by now; a newer server knows more of them."""

    value: Any


V = TypeVar("V", StoredVoice, Consent)


def changed(value: V, facts: Mapping[str, Any]) -> V:
    """`value` with the facts that it has by now; those of a newer server are left out."""
    known = {one.name for one in fields(value)} & set(FACTS)
    return replace(value, **{name: fact for name, fact in facts.items() if name in known})


def fields_of(value: StoredVoice | Consent | Alias) -> dict[str, Any]:
    return asdict(value)
