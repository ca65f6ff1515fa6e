"""The voice library: one folder for all servers, which each knows as it was within a second."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, TypeVar

from serve_app.errors import (
    Conflict,
    NotAllowed,
    NotFound,
    Overloaded,
)
from serve_app.storage.faults import away, fault
from serve_app.storage.objects import Storage
from serve_app.types import EncodedClip
from serve_app.voices.changes import Changes
from serve_app.voices.clips import clip_bytes, clip_of
from serve_app.voices.index import Snapshot
from serve_app.voices.names import folded, is_consent_id
from serve_app.voices.values import Alias, Caller, Change, Consent, StoredVoice

T = TypeVar("T")

# From this age on a snapshot is renewed behind the back of whoever looks at it; from the other on
# they wait for it. Together with the time that it takes this is less than a second.
_SOON_S: Final = 0.4
_STALE_S: Final = 0.8
# Who misses something has it looked for again, by one look for all. Looks take a tenth of the time
# of a thread at most, so that who asks for what is not there is answered soon and costs others
# nothing; an object store, which asks a price for each, gets ten a second.
_AGAIN: Final = 10
_AGAIN_S: Final = (0.005, 0.1)
# A library that does not answer is asked again after a pause.
_PAUSE_S: Final = 5.0
_WORK_S: Final = 20.0
_THREADS: Final = 4
# Who meets another writer of the same name tries again, each after its own time.
_ATTEMPTS: Final = 4

# As its errors call it.
_KEPT: Final = "voices"

logger = logging.getLogger(__name__)


class Library:
    """What there is, and every change to it.

    All methods that write raise:
        StorageFull: there is no room in it.
        StorageAway: it cannot be reached, or not be written.

    Args:
        max_voices, max_voices_of_a_key: then no more are taken; the same for consents, and for
            aliases. What is made without a key counts for the first only.
        patience_s: how long a request waits for a storage that does not answer; the next ones do
            not, for a while.

    Attributes:
        again_s: from one look to the next for who misses something, by what the last one took.
    """

    def __init__(
        self,
        storage: Storage,
        max_voices: int = 1000,
        max_voices_of_a_key: int = 100,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = 2.0,
    ) -> None:
        self._storage = storage
        self._changes = Changes(storage)
        self._max_voices = max_voices
        self._max_of_a_key = max_voices_of_a_key
        self._clock = clock
        self._patience_s = patience_s
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="voices")
        self._looked_s = float("-inf")
        self._looking: Future[None] | None = None
        self._is_reached = True
        self.again_s = _AGAIN_S[0]

    @property
    def known(self) -> Snapshot:
        """As it was when last looked at."""
        return self._changes.snapshot

    async def now(self) -> Snapshot:
        """As it is now, or was less than a second ago.

        A library that cannot be reached is as it was; `require` says so.
        """
        age_s = self._clock() - self._looked_s
        if age_s < _SOON_S:
            return self.known
        looking = self._begin()
        if age_s >= _STALE_S:
            await self._end(looking)
        return self.known

    def _begin(self) -> Future[None]:
        """The look that is going on, or a new one."""
        if self._looking is None or self._looking.done():
            self._looking = self._pool.submit(self._look)
        return self._looking

    async def _end(self, looking: Future[None]) -> None:
        """Wait for a look, as long as patience goes."""
        await asyncio.wait({asyncio.wrap_future(looking)}, timeout=self._patience_s)
        if not looking.done():
            self._miss("the voice library does not answer")

    @property
    def moment_s(self) -> float:
        """The time by which `renewed` goes."""
        return self._clock()

    async def renewed(self, since_s: float) -> bool:
        """Look again unless it was looked at after `since_s`; whether it has changed.

        For who misses something that another server may have written before it asked, at `since_s`.
        However many do, there is one look at a time and a pause between two.
        """
        before = self.known
        while self._looked_s < since_s:
            await asyncio.sleep(self._looked_s + self.again_s - self._clock())
            if self._looked_s < since_s:
                await self._end(self._begin())
        return self.known is not before

    async def _found(self, find: Callable[[Snapshot], T | None]) -> T | None:
        """What `find` gives, if need be of a library that was looked at once more."""
        asked_s = self._clock()
        found = find(await self.now())
        if found is None and await self.renewed(asked_s):
            found = find(self.known)
        return found

    def require(self) -> None:
        """
        Raises:
            StorageAway: what it has is not known.
        """
        if not self._is_reached:
            raise away(_KEPT)

    def _look(self) -> None:
        began_s = self._clock()
        try:
            self._changes.look()
        except Exception as error:
            self._miss("the voice library cannot be read", error)
        else:
            self._is_reached = True
            self._looked_s = began_s
            shortest_s, longest_s = _AGAIN_S
            self.again_s = min(max(shortest_s, _AGAIN * (self._clock() - began_s)), longest_s)

    def _miss(self, what: str, error: Exception | None = None) -> None:
        """Go by what is known, and let nobody wait for more for a while."""
        if self._is_reached:
            logger.error("%s", what, exc_info=error)
        self._is_reached = False
        self._looked_s = self._clock() + _PAUSE_S

    async def add(self, voice: StoredVoice, parts: dict[str, bytes]) -> StoredVoice:
        """Keep a new voice with its objects (`recording.flac`, `vector.safetensors`).

        Raises:
            Conflict: its owner has one of this name.
            Overloaded: there are as many as there may be.
        """
        for attempt in range(_ATTEMPTS):
            snapshot = await self._write(self._changes.look)
            self._check_room(snapshot.voices.values(), voice.owner, "a voice")
            if snapshot.twins(voice):
                break
            await self._write(self._changes.add, voice, parts)
            # Two servers may have found the name free: whoever now sees the other's takes its own
            # back, so that never two are promised.
            if not self.known.twins(voice):
                return voice
            await self._write(self._changes.remove, voice.id)
            await asyncio.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise _taken(voice.name)

    def _check_room(
        self, there: Collection[StoredVoice | Consent | Alias], owner: str | None, kind: str
    ) -> None:
        own = 0 if owner is None else sum(other.owner == owner for other in there)
        if len(there) >= self._max_voices or own >= self._max_of_a_key:
            raise Overloaded(
                f"The voice library is full: delete {kind}, or ask the operator for more room.",
                60.0,
            )

    async def change(self, name: str, change: Change, caller: Caller) -> StoredVoice:
        """Change facts of a voice.

        Raises:
            NotFound, NotAllowed: there is none for `caller`, or it is another's.
            Conflict: its owner has another one of the new name.
        """
        voice = await self.get(name, caller, to_change=True)
        facts = dict(change.facts())
        if not facts:
            return voice
        renamed = replace(voice, name=facts.get("name", voice.name))
        if self.known.twins(renamed):
            raise _taken(renamed.name)
        await self._write(self._changes.change, f"voices/{voice.id}", facts)
        if "name" in facts and self.known.twins(renamed):
            await self._write(self._changes.change, f"voices/{voice.id}", {"name": voice.name})
            raise _taken(renamed.name)
        return await self.get(voice.id, caller)

    async def find(self, name: str, caller: Caller) -> StoredVoice | None:
        """The voice of an id or a name, if there is one that `caller` may see."""
        return await self._found(lambda known: known.named(name, caller))

    async def get(self, name: str, caller: Caller, to_change: bool = False) -> StoredVoice:
        """The voice of an id or a name.

        Raises:
            NotFound: there is none that `caller` may see.
            NotAllowed: with `to_change`, it is another's.
        """
        voice = await self.find(name, caller)
        if voice is None:
            self.require()
            raise NotFound(f"The voice '{name[:80]}' does not exist.", "voice", "voice_not_found")
        if to_change and not voice.may_change(caller):
            raise NotAllowed("This voice belongs to another key.")
        return voice

    async def delete(self, name: str, caller: Caller) -> StoredVoice:
        """Delete a voice, and the aliases of it; raises what `get` raises."""
        voice = await self.get(name, caller, to_change=True)
        if not await self._write(self._changes.remove, voice.id):
            raise NotFound("The voice does not exist any more.", "voice", "voice_not_found")
        return voice

    async def recording(self, voice: StoredVoice) -> bytes | None:
        """Its recording in FLAC; None: it was brought as a vector, or is gone."""
        return await self._write(self._storage.read, f"voices/{voice.id}/recording.flac")

    async def vector(self, voice: StoredVoice) -> bytes | None:
        return await self._write(self._storage.read, f"voices/{voice.id}/vector.safetensors")

    async def clip(self, voice: StoredVoice, key: str) -> EncodedClip | None:
        """What was once encoded of it for the checkpoint of this key (see `clips.clip_key`)."""
        data = await self._write(self._storage.read, _clip_path(voice, key))
        try:
            return None if data is None else clip_of(data)
        except ValueError as error:
            logger.error("%s: an encoded clip cannot be read: %s", voice.id, error)
            return None

    async def keep_clip(self, voice: StoredVoice, key: str, clip: EncodedClip) -> None:
        await self._write(self._storage.write, _clip_path(voice, key), clip_bytes(clip))

    async def set_alias(self, alias: Alias) -> None:
        """
        Raises:
            Overloaded: there are as many as there may be, and this is not one of them.
        """
        there = (await self._write(self._changes.look)).aliases
        if not any(o.owner == alias.owner and folded(o.name) == folded(alias.name) for o in there):
            self._check_room(there, alias.owner, "an alias")
        await self._write(self._changes.set_alias, alias)

    async def drop_alias(self, name: str, owner: str | None) -> None:
        """
        Raises:
            NotFound: `owner` has none of this name.
        """
        if not await self._write(self._changes.drop_alias, name, owner):
            raise NotFound(f"The alias '{name[:80]}' does not exist.", "alias", "not_found")

    async def set_default(self, owner: str | None, voice_id: str | None) -> None:
        await self._write(self._changes.set_default, owner, voice_id)

    async def add_consent(self, consent: Consent, recording: bytes) -> None:
        """
        Raises:
            Overloaded: there are as many as there may be.
        """
        there = (await self._write(self._changes.look)).consents
        self._check_room(there.values(), consent.owner, "a consent")
        await self._write(self._changes.add_consent, consent, recording)

    async def consent(self, consent_id: str, caller: Caller) -> Consent:
        """
        Raises:
            NotFound: there is none that `caller` may see.
        """
        consent = await self._found(lambda known: known.consents.get(consent_id))
        if consent is None or not consent.is_open_to(caller):
            self.require()
            raise NotFound(
                f"The consent '{consent_id[:80]}' does not exist.", "consent", "consent_not_found"
            )
        return consent

    async def look_for_consent(self, stated: str | None) -> None:
        """Know the library as it is, and a consent that another server may just have written."""
        text = (stated or "").strip()
        await self._found(lambda known: not is_consent_id(text) or known.consents.get(text))

    async def rename_consent(self, consent_id: str, name: str, caller: Caller) -> Consent:
        consent = await self.consent(consent_id, caller)
        await self._write(self._changes.change, f"consents/{consent.id}", {"name": name})
        return replace(consent, name=name)

    async def delete_consent(self, consent_id: str, caller: Caller) -> None:
        consent = await self.consent(consent_id, caller)
        await self._write(self._changes.remove_consent, consent.id)

    async def consent_recording(self, consent: Consent) -> bytes | None:
        return await self._write(self._storage.read, f"consents/{consent.id}/recording.flac")

    async def _write(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self._on_thread(work, *arguments)
        except OSError as error:
            raise fault(error, _KEPT) from error

    async def _on_thread(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call what waits for the storage. A storage that hangs keeps a thread, not the caller.

        Raises what `work` raises, and TimeoutError (an OSError).
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_WORK_S):
            return await loop.run_in_executor(self._pool, work, *arguments)


def _clip_path(voice: StoredVoice, key: str) -> str:
    return f"voices/{voice.id}/clips/{key}.safetensors"


def _taken(name: str) -> Conflict:
    return Conflict(f"There is a voice named '{name}' already.", "name", "voice_exists")
