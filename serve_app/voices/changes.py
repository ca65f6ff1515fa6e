"""Reads and writes the objects of the library; everything here blocks."""

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from serve_app.storage.objects import Storage
from serve_app.voices.index import GENERATION, Index, Snapshot, is_beginning, stamped
from serve_app.voices.names import folded, key_of
from serve_app.voices.values import Alias, Consent, StoredVoice, fields_of

# Without a sign of a change everything is looked at so often: a writer may have died before its.
_WHOLE_S: Final = 30.0
_CLEAN_S: Final = 3600.0


class Changes:
    """One server's way to the storage. Threads may share it.

    A change ends with another content of `generation`, which is all that the others read as long
    as nothing changes.
    """

    def __init__(self, storage: Storage, clock: Callable[[], float] = time.monotonic) -> None:
        self._storage = storage
        self._clock = clock
        self._index = Index(storage)
        self._lock = threading.Lock()
        self._generation: bytes | None = None
        self._loaded_s = float("-inf")
        self._cleaned_s = clock()
        self._lost: set[str] = set()
        self.snapshot = Snapshot()

    def look(self) -> Snapshot:
        """The library as it is now."""
        with self._lock:
            # Read before the objects: what is written meanwhile has a later one.
            generation = self._storage.read(GENERATION)
            now_s = self._clock()
            if generation != self._generation or now_s - self._loaded_s > _WHOLE_S:
                self._load(generation)
            if now_s - self._cleaned_s > _CLEAN_S:
                self._cleaned_s = now_s
                self._clean()
            return self.snapshot

    def _clean(self) -> None:
        """Remove what writers that were killed left behind: what is met a second time."""
        self._storage.clean()
        found, begun = set[str](), set[str]()
        for folder in ("voices", "consents"):
            for path in self._storage.paths(folder):
                place = "/".join(path.split("/")[:2])
                found.add(place)
                if is_beginning(path):  # readable or not: another release may have written it
                    begun.add(place)
        lost = found - begun
        for place in lost & self._lost:
            self._storage.delete_folder(place)
        self._lost = lost

    def add(self, voice: StoredVoice, parts: Mapping[str, bytes]) -> None:
        for name, data in parts.items():
            self._storage.write(f"voices/{voice.id}/{name}", data)
        # With this one it exists.
        self._storage.write(f"voices/{voice.id}/voice.json", _json(fields_of(voice)))
        self._changed()

    def remove(self, voice_id: str) -> bool:
        """Whether it was there."""
        was_there = self._storage.delete(f"voices/{voice_id}/voice.json")
        self._storage.delete_folder(f"voices/{voice_id}")
        for alias in self.look().aliases:
            if alias.target == voice_id:
                self._storage.delete_folder(_alias_place(alias.name, alias.owner))
        self._changed()
        return was_there

    def change(self, place: str, facts: Mapping[str, Any]) -> None:
        """Write facts of what is at `place`."""
        for name, value in facts.items():
            self._put(f"{place}/facts/{name}", {"value": value})
        self._changed()

    def set_alias(self, alias: Alias) -> None:
        self._put(_alias_place(alias.name, alias.owner), fields_of(alias))
        self._changed()

    def drop_alias(self, name: str, owner: str | None) -> bool:
        """Whether there was one."""
        known = {(alias.owner, folded(alias.name)) for alias in self.look().aliases}
        if (owner, folded(name)) not in known:
            return False
        self._storage.delete_folder(_alias_place(name, owner))
        self._changed()
        return True

    def set_default(self, owner: str | None, voice_id: str | None) -> None:
        self._put(f"defaults/{key_of(owner)}", {"owner": owner, "voice": voice_id})
        self._changed()

    def add_consent(self, consent: Consent, recording: bytes) -> None:
        place = f"consents/{consent.id}"
        self._storage.write(f"{place}/recording.flac", recording)
        self._storage.write(f"{place}/consent.json", _json(fields_of(consent)))
        self._changed()

    def remove_consent(self, consent_id: str) -> None:
        self._storage.delete(f"consents/{consent_id}/consent.json")
        self._storage.delete_folder(f"consents/{consent_id}")
        self._changed()

    def _put(self, place: str, content: Mapping[str, Any]) -> None:
        """A new object that counts from now on, and is the only one that is kept."""
        path = stamped(place, self.snapshot.stamps, time.time_ns())
        self._storage.write(path, _json(content))
        for older in list(self._storage.paths(place)):
            if older < path:
                self._storage.delete(older)

    def _changed(self) -> None:
        generation = secrets.token_hex(8).encode()
        self._storage.write(GENERATION, generation)
        with self._lock:
            self._load(self._storage.read(GENERATION))

    def _load(self, generation: bytes | None) -> None:
        self.snapshot = self._index.load()
        self._generation = generation
        self._loaded_s = self._clock()


def _alias_place(name: str, owner: str | None) -> str:
    return f"aliases/{key_of(owner, name)}"


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=True, separators=(",", ":")).encode("ascii")
