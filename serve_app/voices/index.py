"""What the library has, read from its objects. None of them ever changes, so each is read once.

    voices/<id>/voice.json                  what a voice began as; without it there is none
                recording.flac
                vector.safetensors          of one that was brought as a vector
                clips/<checkpoint>.safetensors
                facts/<fact>/<stamp>.json   a later name, transcript, ...; the last stamp counts
    consents/<id>/consent.json, recording.flac, facts/...
    aliases/<key>/<stamp>.json              the last stamp counts
    defaults/<key>/<stamp>.json
    generation                              another content after each change

A fact that changes is a new object, so that two servers that change different facts of a voice, or
different voices, keep both.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from serve_app.storage.objects import Storage
from serve_app.voices.names import folded, is_consent_id, is_voice_id
from serve_app.voices.stored import Value, Wrong, is_read, read
from serve_app.voices.values import Alias, Caller, Consent, Default, Fact, StoredVoice, changed

V = TypeVar("V", StoredVoice, Consent)

GENERATION: Final = "generation"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The library at one moment.

    Attributes:
        defaults: id of the voice that answers where none is named, by owner; None: for everybody.
        stamps: the last stamp below each folder of facts, aliases and defaults.
    """

    voices: Mapping[str, StoredVoice] = field(default_factory=dict)
    consents: Mapping[str, Consent] = field(default_factory=dict)
    aliases: tuple[Alias, ...] = ()
    defaults: Mapping[str | None, str] = field(default_factory=dict)
    stamps: Mapping[str, int] = field(default_factory=dict)
    _named: dict[str, list[StoredVoice]] = field(init=False, repr=False, default_factory=dict)
    _aliased: dict[str, list[Alias]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for voice in sorted(self.voices.values(), key=_age):
            self._named.setdefault(folded(voice.name), []).append(voice)
        for alias in self.aliases:
            self._aliased.setdefault(folded(alias.name), []).append(alias)

    def find(self, name: str | None, caller: Caller) -> StoredVoice | str | None:
        """What `caller` means by `name`: a voice of the library, or by an alias one of a
        checkpoint's speakers; None: the library knows nothing of it.

        Ids come first, then names, then aliases: each time one's own before everybody's.
        """
        wanted = folded(name or "")
        if wanted in ("", "default"):
            for owner in (caller.name, None):
                voice = self.voices.get(self.defaults.get(owner, ""))
                if voice is not None and voice.is_open_to(caller):
                    return voice
            return None
        voice = self.named(wanted, caller)
        if voice is not None:
            return voice
        for owner in (caller.name, None):
            for alias in self._aliased.get(wanted, ()):
                if alias.owner != owner:
                    continue
                if not is_voice_id(alias.target):
                    return alias.target
                voice = self.voices.get(alias.target)
                if voice is not None and voice.is_open_to(caller):
                    return voice
        return None

    def named(self, name: str, caller: Caller) -> StoredVoice | None:
        """The voice of this id or name."""
        wanted = folded(name)
        if is_voice_id(wanted):
            voice = self.voices.get(wanted)
            return voice if voice is not None and voice.is_open_to(caller) else None
        found = [voice for voice in self._named.get(wanted, ()) if voice.is_open_to(caller)]
        return min(found, key=lambda voice: voice.owner != caller.name, default=None)

    def open_to(self, caller: Caller) -> list[StoredVoice]:
        """The voices that `caller` may speak with, the oldest first."""
        found = [voice for voice in self.voices.values() if voice.is_open_to(caller)]
        return sorted(found, key=_age)

    def aliases_for(self, caller: Caller) -> list[Alias]:
        """Those that `caller` can speak with; of two with one name, one's own."""
        found: dict[str, Alias] = {}
        for alias in sorted(self.aliases, key=lambda alias: alias.owner is not None):
            if alias.owner in (None, caller.name) and self._is_open(alias.target, caller):
                found[folded(alias.name)] = alias
        return list(found.values())

    def _is_open(self, target: str, caller: Caller) -> bool:
        """Whether what an alias stands for is a speaker, or a voice that `caller` may know of."""
        voice = self.voices.get(target)
        return not is_voice_id(target) or (voice is not None and voice.is_open_to(caller))

    def twins(self, voice: StoredVoice) -> list[StoredVoice]:
        """Other voices of the same owner and name."""
        same = self._named.get(folded(voice.name), ())
        return [other for other in same if other.id != voice.id and other.owner == voice.owner]


def _age(voice: StoredVoice) -> tuple[int, str]:
    return voice.created_at, voice.id


class Index:
    """Reads snapshots, and remembers the objects that it has read. For one thread at a time."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._read: dict[str, Value | Wrong] = {}
        # The bytes of what is wrong, so that it is said once.
        self._wrong: dict[str, bytes] = {}

    def load(self) -> Snapshot:
        """The library as it is now, without what no value can be made of.

        Raises:
            OSError: the storage cannot be read.
        """
        paths = [p for p in self._storage.paths("") if p.endswith(".json") and is_read(p)]
        last = _last_of(paths)
        wanted = {path for path in paths if is_beginning(path)} | set(last.values())
        self._read = {path: value for path, value in self._read.items() if path in wanted}
        self._wrong = {path: data for path, data in self._wrong.items() if path in wanted}
        # What is wrong, somebody may mend.
        news = [path for path in wanted if path not in self._read or path in self._wrong]
        for path, data in self._storage.read_all(news).items():
            if self._wrong.get(path) == data:
                continue
            self._wrong.pop(path, None)
            value = self._read[path] = read(path, data)
            if isinstance(value, Wrong):
                self._wrong[path] = data
        facts: dict[str, dict[str, Value | Wrong]] = {}
        for place, path in last.items():
            owner, _, fact = place.partition("/facts/")
            if fact and path in self._read:
                facts.setdefault(owner, {})[fact] = self._read[path]
        found = [self._read[path] for path in last.values() if path in self._read]
        voices = self._with_facts("voices", StoredVoice, facts)
        consents = self._with_facts("consents", Consent, facts)
        return Snapshot(
            {voice.id: voice for voice in voices if is_voice_id(voice.id)},
            {consent.id: consent for consent in consents if is_consent_id(consent.id)},
            tuple(value for value in found if isinstance(value, Alias)),
            {value.owner: value.voice or "" for value in found if isinstance(value, Default)},
            {place: _stamp(path) for place, path in last.items()},
        )

    def _with_facts(
        self, folder: str, kind: type[V], facts: Mapping[str, Mapping[str, Value | Wrong]]
    ) -> Iterator[V]:
        """Each as it is by now. One of which a fact is wrong is left out: before it, it may have
        been open to more.
        """
        for value in self._read.values():
            if not isinstance(value, kind):
                continue
            of_it = facts.get(f"{folder}/{value.id}", {})
            if not any(isinstance(fact, Wrong) for fact in of_it.values()):
                known = {name: fact.value for name, fact in of_it.items() if isinstance(fact, Fact)}
                yield changed(value, known)


def stamped(place: str, stamps: Mapping[str, int], now_ns: int) -> str:
    """The path of a new object below `place`, later than any that is known there."""
    return f"{place}/{max(now_ns, stamps.get(place, 0) + 1):020d}.json"


def is_beginning(path: str) -> bool:
    """Whether an object is the one without which there is no voice, or no consent."""
    return path.endswith(("/voice.json", "/consent.json")) and path.count("/") == 2


def _last_of(paths: Iterable[str]) -> dict[str, str]:
    """The last object of each folder in which the last one counts."""
    last: dict[str, str] = {}
    for path in sorted(paths):
        place, _, name = path.rpartition("/")
        if name.removesuffix(".json").isdecimal():
            last[place] = path
    return last


def _stamp(path: str) -> int:
    return int(path.rpartition("/")[2].removesuffix(".json"))
