"""One library, several servers: what each sees of the others, and that none loses anything."""

import asyncio
import contextlib
import json
import secrets
import threading
import time

import numpy as np
import pytest

from serve_app.errors import Conflict, NotAllowed, NotFound, Overloaded, StageUnavailable
from serve_app.storage.objects import Folder, storage_at
from serve_app.types import EncodedClip
from serve_app.voices.changes import Changes
from serve_app.voices.library import Library
from serve_app.voices.names import new_consent_id, new_voice_id
from serve_app.voices.values import Alias, Caller, Change, Consent, fields_of
from tests.unit.voices.voices import voice

ANNE, BOB, NOBODY = Caller("anne"), Caller("bob"), Caller()
PARTS = {"recording.flac": b"fLaC"}
# From one look to the next, where looks take no time.
AT_LEAST_S = 0.005


@pytest.fixture(params=["folder", "file", "memory"])
def place(request, tmp_path):
    return {
        "folder": str(tmp_path / "voices"),
        "file": f"file://{tmp_path}/voices",
        "memory": f"memory://{secrets.token_hex(8)}/voices",
    }[request.param]


def servers(place, count=2, **limits):
    return [Library(storage_at(place, {}), **limits) for _ in range(count)]


async def soon(condition):
    """Wait as long as a change may take to be seen, and a bit more for a busy machine."""
    async with asyncio.timeout(5):
        while not await condition():
            await asyncio.sleep(0.05)


def test_what_one_server_makes_another_and_a_later_one_have(place):
    async def main():
        first, second = servers(place)
        assert await second.now() == await first.now()
        made = await first.add(voice("Ännchen von Tharau"), PARTS)

        async def is_there():
            return made.id in (await second.now()).voices

        await soon(is_there)
        (third,) = servers(place, 1)
        for server in (first, second, third):
            found = await server.get("ÄNNCHEN  von tharau", NOBODY)
            assert found == made
            assert await server.recording(found) == b"fLaC"
        await second.delete(made.id, NOBODY)

        async def is_gone():
            return not (await first.now()).voices

        await soon(is_gone)
        with pytest.raises(NotFound):
            await first.delete(made.id, NOBODY)

    asyncio.run(main())


def test_two_writers_at_once_lose_nothing(place):
    async def main():
        one, other = servers(place)
        names = [f"voice {number}" for number in range(12)]
        both = zip(names, (one, other) * 6, strict=True)
        await asyncio.gather(*(server.add(voice(name), PARTS) for name, server in both))
        changes = (
            one.change("voice 3", Change(transcript="Good morning."), NOBODY),
            other.change("voice 3", Change(description="calm"), NOBODY),
        )
        (third,) = servers(place, 1)
        await other.now()
        await asyncio.sleep(1)
        await asyncio.gather(*changes)
        snapshot = await third.now()
        assert sorted(found.name for found in snapshot.voices.values()) == sorted(names)
        found = await third.get("voice 3", NOBODY)
        assert (found.transcript, found.description) == ("Good morning.", "calm")

    asyncio.run(main())


def test_of_two_that_want_one_name_at_once_at_most_one_gets_it(tmp_path):
    async def main():
        several = servers(str(tmp_path), 4)
        got = await asyncio.gather(
            *(server.add(voice("the one"), PARTS) for server in several), return_exceptions=True
        )
        assert sum(isinstance(result, Conflict) for result in got) >= 3
        (later,) = servers(str(tmp_path), 1)
        assert len((await later.now()).voices) <= 1

    asyncio.run(main())


def test_names_are_unique_for_an_owner_and_others_keep_theirs(tmp_path):
    async def main():
        (library,) = servers(str(tmp_path), 1)
        mine = await library.add(voice("Erika", "anne"), PARTS)
        theirs = await library.add(voice("erika", "bob", shared=True), PARTS)
        with pytest.raises(Conflict):
            await library.add(voice("ERIKA", "anne"), PARTS)
        snapshot = await library.now()
        assert snapshot.find("erika", ANNE) == mine
        assert snapshot.find("erika", BOB) == theirs
        assert snapshot.find("erika", NOBODY) == theirs
        other = await library.add(voice("Otto", "anne"), PARTS)
        with pytest.raises(Conflict):
            await library.change(other.id, Change(name="erika"), ANNE)
        renamed = await library.change(other.id, Change(name="Ottilie"), ANNE)
        assert (await library.get("ottilie", ANNE)).id == renamed.id == other.id

    asyncio.run(main())


def test_a_voice_is_its_owners_and_an_admins(tmp_path):
    async def main():
        (library,) = servers(str(tmp_path), 1)
        hers = await library.add(voice("hers", "anne"), PARTS)
        for who in (BOB, NOBODY):
            with pytest.raises(NotFound):
                await library.get(hers.id, who)
            with pytest.raises(NotFound):
                await library.delete(hers.id, who)
        await library.change(hers.id, Change(shared=True), ANNE)
        assert (await library.get(hers.id, BOB)).shared
        with pytest.raises(NotAllowed):
            await library.delete(hers.id, BOB)
        await library.delete(hers.id, Caller("root", is_admin=True))

    asyncio.run(main())


def test_an_alias_of_a_voice_that_is_not_ones_own_any_more_says_nothing_of_it(tmp_path):
    async def main():
        (library,) = servers(str(tmp_path), 1)
        hers = await library.add(voice("hers", "anne", shared=True), PARTS)
        await library.set_alias(Alias("guest", "bob", hers.id))
        await library.set_alias(Alias("reader", None, hers.id))
        await library.set_alias(Alias("reader", "bob", "ryan"))
        aliases = (await library.now()).aliases_for(BOB)
        assert {alias.name: alias.target for alias in aliases} == {
            "guest": hers.id,
            "reader": "ryan",
        }
        await library.change(hers.id, Change(shared=False), ANNE)
        aliases = (await library.now()).aliases_for(BOB)
        assert {alias.name: alias.target for alias in aliases} == {"reader": "ryan"}
        assert [alias.target for alias in (await library.now()).aliases_for(ANNE)] == [hers.id]

    asyncio.run(main())


def test_aliases_and_defaults_are_ones_own_before_everybodys(tmp_path):
    async def main():
        (library,) = servers(str(tmp_path), 1)
        first = await library.add(voice("first"), PARTS)
        second = await library.add(voice("second"), PARTS)
        await library.set_alias(Alias("Alloy", None, first.id))
        await library.set_alias(Alias("alloy", "anne", second.id))
        await library.set_alias(Alias("narrator", None, "ryan"))
        await library.set_default(None, first.id)
        await library.set_default("anne", second.id)
        snapshot = await library.now()
        assert snapshot.find("ALLOY", BOB) == first
        assert snapshot.find("alloy", ANNE) == second
        assert snapshot.find("narrator", ANNE) == "ryan"
        assert snapshot.find("", BOB) == first
        assert snapshot.find("default", ANNE) == second
        await library.drop_alias("alloy", "anne")
        await library.set_default("anne", None)
        with pytest.raises(NotFound):
            await library.drop_alias("alloy", "anne")
        snapshot = await library.now()
        assert snapshot.find("alloy", ANNE) == first
        assert snapshot.find(None, ANNE) == first
        # With the voice go the names that others have for it.
        await library.delete(first.id, NOBODY)
        assert (await library.now()).find("alloy", ANNE) is None
        assert [alias.name for alias in (await library.now()).aliases] == ["narrator"]

    asyncio.run(main())


def test_a_full_library_takes_no_more(tmp_path):
    async def main():
        (library,) = servers(str(tmp_path), 1, max_voices=3, max_voices_of_a_key=2)
        for name in ("a", "b"):
            await library.add(voice(name, "anne"), PARTS)
        with pytest.raises(Overloaded):
            await library.add(voice("c", "anne"), PARTS)
        await library.add(voice("c", "bob"), PARTS)
        with pytest.raises(Overloaded):
            await library.add(voice("d", "carol"), PARTS)

    asyncio.run(main())


def test_without_a_key_the_whole_library_is_there_to_be_filled(tmp_path):
    async def main():
        (library,) = servers(str(tmp_path), 1, max_voices=3, max_voices_of_a_key=1)
        for name in ("a", "b", "c"):
            await library.add(voice(name), PARTS)
        with pytest.raises(Overloaded):
            await library.add(voice("d"), PARTS)

    asyncio.run(main())


def test_consents_and_aliases_are_bounded_as_voices_are(tmp_path):
    async def main():
        (library,) = servers(str(tmp_path), 1, max_voices=3, max_voices_of_a_key=2)

        def consent(owner):
            return Consent(new_consent_id(), 1, owner, "C", "en", "0" * 64, 3.0)

        for bounded in (
            lambda owner, number: library.add_consent(consent(owner), b"fLaC"),
            lambda owner, number: library.set_alias(Alias(f"alias {number}", owner, "ryan")),
        ):
            for number in range(2):
                await bounded("anne", number)
            with pytest.raises(Overloaded, match=r"delete an? (consent|alias)"):
                await bounded("anne", 2)
            await bounded(None, 0)
            with pytest.raises(Overloaded):
                await bounded(None, 1)
        # What there is may become the name of another.
        await library.set_alias(Alias("ALIAS 1", "anne", "dylan"))
        assert (await library.now()).find("alias 1", ANNE) == "dylan"

    asyncio.run(main())


def test_an_encoded_clip_is_kept_with_its_voice_for_each_checkpoint(place):
    async def main():
        first, second = servers(place)
        made = await first.add(voice("a"), PARTS)
        clip = EncodedClip(np.arange(8, dtype=np.float32), np.arange(12).reshape(3, 4))
        assert await second.clip(made, "k1") is None
        await first.keep_clip(made, "k1", clip)
        found = await second.clip(made, "k1")
        np.testing.assert_array_equal(found.speaker_vector, clip.speaker_vector)
        np.testing.assert_array_equal(found.codes, clip.codes)
        assert await second.clip(made, "k2") is None

    asyncio.run(main())


def test_consents_are_kept_renamed_and_withdrawn(place):
    async def main():
        first, second = servers(place)
        consent = Consent(new_consent_id(), 1, "anne", "Anne's", "en-US", "0" * 64, 3.0)
        await first.add_consent(consent, b"fLaC")
        await first.rename_consent(consent.id, "Anne", ANNE)
        assert (await second.consent(consent.id, ANNE)).name == "Anne"
        assert await second.consent_recording(consent) == b"fLaC"
        with pytest.raises(NotFound):
            await second.delete_consent(consent.id, BOB)
        await second.delete_consent(consent.id, ANNE)
        assert (await second.now()).consents == {}

    asyncio.run(main())


def test_what_a_killed_server_left_half_done_is_no_voice(tmp_path):
    async def main():
        storage = Folder(tmp_path)
        half = new_voice_id()
        storage.write(f"voices/{half}/recording.flac", b"fLaC")
        storage.write(f"voices/{new_voice_id()}/voice.json", b"{")
        storage.write(f"voices/{new_voice_id()}/voice.json", json.dumps({"id": half}).encode())
        storage.write("voices/../aliases/x/1.json", b'{"name": "a"}')
        (library,) = servers(str(tmp_path), 1)
        whole = await library.add(voice("whole"), PARTS)
        assert list((await library.now()).voices) == [whole.id]

    asyncio.run(main())


def test_leftovers_are_removed_when_they_are_met_a_second_time(tmp_path):
    now_s = 100.0
    storage = Folder(tmp_path)
    changes = Changes(storage, clock=lambda: now_s)
    whole = voice("whole")
    changes.add(whole, PARTS)
    storage.write(f"voices/{new_voice_id()}/recording.flac", b"fLaC")
    for left in (2, 2, 1):
        changes.look()
        assert len(list((tmp_path / "voices").iterdir())) == left
        now_s += 3601
    assert changes.look().voices == {whole.id: whole}


def test_what_this_server_cannot_read_is_nobodys_leftover(tmp_path):
    """Another release may have written it, which serves the same library."""
    now_s = 100.0
    storage = Folder(tmp_path)
    changes = Changes(storage, clock=lambda: now_s)
    for kind, made in (("voices", new_voice_id()), ("consents", new_consent_id())):
        storage.write(f"{kind}/{made}/{kind[:-1]}.json", b'{"invented": 1}')
        storage.write(f"{kind}/{made}/recording.flac", b"fLaC")
    there = sorted(storage.paths(""))
    for _ in range(3):
        assert changes.look().voices == {}
        now_s += 3601
    assert [path for path in sorted(storage.paths("")) if path != "generation"] == there


WRONG = {
    "name": (7, None, ["a"], {"a": 1}, True, "half of a character: \ud83d"),
    "created_at": ("yesterday", None, 1.5, -1, 10**30, True),
    "owner": (7, ["anne"], {}),
    "source": ("a newer one", 7, None, []),
    "consent": (7, []),
    "file_size": ("4", None, -1),
    "mime_type": (None, 4),
    "digest": (0, None),
    "duration_s": ("2.0", None, -1.0, True),
    "transcript": (7, ["Hello."]),
    "language": (7, {}),
    "description": (False, 7),
    "shared": ("yes", 1, None),
    "vector_size": ("1024", 1.5),
    "prompt": (7,),
}
FACTS = ("name", "transcript", "language", "description", "shared")


@pytest.mark.parametrize("later", [False, True], ids=["as it began", "as a later fact"])
def test_a_voice_of_which_something_is_wrong_is_left_out_alone_said_once_and_kept(
    tmp_path, caplog, later
):
    storage = Folder(tmp_path)
    whole, wrong = voice("whole"), []
    for name, values in WRONG.items():
        for value in values if name in FACTS or not later else ():
            one = voice(f"{name} {value!r}")
            content = {**fields_of(one), **({} if later else {name: value})}
            storage.write(f"voices/{one.id}/voice.json", json.dumps(content).encode())
            if later:
                fact = json.dumps({"value": value}).encode()
                storage.write(f"voices/{one.id}/facts/{name}/1.json", fact)
            wrong.append(one.id)
    if not later:
        for data in (b"", b"{", b"[]", b"7", b"null", b"\xff", b"[" * 100_000, b'{"a": Infinity}'):
            wrong.append(new_voice_id())
            storage.write(f"voices/{wrong[-1]}/voice.json", data)
    now_s = 100.0
    changes = Changes(storage, clock=lambda: now_s)
    changes.add(whole, PARTS)
    there = sorted(storage.paths(""))
    for _ in range(4):
        assert changes.look().voices == {whole.id: whole}
        now_s += 3601
    said = [record.getMessage() for record in caplog.records]
    assert sorted(line.split("/")[1] for line in said) == sorted(wrong)
    assert sorted(storage.paths("")) == there


def test_what_was_wrong_and_is_mended_is_there_without_a_restart(tmp_path, caplog):
    storage = Folder(tmp_path)
    now_s = 100.0
    changes = Changes(storage, clock=lambda: now_s)
    one = voice("mended")
    path = tmp_path / "voices" / one.id / "voice.json"
    storage.write(f"voices/{one.id}/voice.json", b"{}")
    assert changes.look().voices == {}
    path.write_bytes(b'{"id": 7}')
    now_s += 31
    assert changes.look().voices == {}
    path.write_text(json.dumps(fields_of(one)))
    now_s += 31
    assert changes.look().voices == {one.id: one}
    assert len(caplog.records) == 2


def test_other_objects_that_are_wrong_hide_none_of_their_kind(tmp_path, caplog):
    storage = Folder(tmp_path)
    whole = voice("whole", "anne")
    changes = Changes(storage)
    changes.add(whole, PARTS)
    changes.set_alias(Alias("hers", "anne", whole.id))
    changes.set_default("anne", whole.id)
    consent = Consent(new_consent_id(), 1, "anne", "Anne's", "en-US", "0" * 64, 3.0)
    changes.add_consent(consent, b"fLaC")
    wrong = {
        "aliases/a/1.json": {"name": 7, "owner": None, "target": whole.id},
        "aliases/b/1.json": {"name": "b", "owner": ["anne"], "target": whole.id},
        "aliases/c/1.json": {"name": "c", "owner": "anne"},
        "defaults/a/1.json": {"owner": ["anne"], "voice": whole.id},
        "defaults/b/1.json": {"owner": None, "voice": 7},
        f"consents/{new_consent_id()}/consent.json": {**fields_of(consent), "created_at": "now"},
    }
    for path, content in wrong.items():
        storage.write(path, json.dumps(content).encode())
    # Of a newer server, or nobody's: not for this one to speak of.
    storage.write("licences/a/1.json", b"7")
    storage.write(f"voices/{whole.id}/facts/pitch/1.json", b'{"value": [1]}')
    storage.write("voices/1.json", b"{}")
    found = Changes(storage).look()
    assert found.voices == {whole.id: whole}
    assert found.find("hers", ANNE) == found.find(None, ANNE) == whole
    assert found.consents == {consent.id: consent}
    assert len(found.aliases) == len(found.defaults) == 1
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert sorted(line.split(" leaves out ")[1].split(",")[0] for line in said) == sorted(wrong)


def test_nobody_waits_for_a_library_that_hangs_but_the_first(tmp_path):
    class Hanging(Folder):
        gate = threading.Event()

        def read(self, path):
            self.gate.wait(20)
            return super().read(path)

    async def main():
        storage, now_s = Hanging(tmp_path), 100.0
        hanging = Library(storage, clock=lambda: now_s, patience_s=0.05)
        for _ in range(3):
            assert (await hanging.now()).voices == {}
        with pytest.raises(StageUnavailable):
            await hanging.get("a", NOBODY)
        storage.gate.set()
        now_s += 10

        async def is_back():
            with contextlib.suppress(StageUnavailable):
                await hanging.now()
                hanging.require()
                return True

        await soon(is_back)

    asyncio.run(main())


class Broken(Folder):
    """A folder that can be taken away."""

    is_away = False
    gate = threading.Event()

    def read(self, path):
        if self.is_away:
            raise OSError("no such device")
        return super().read(path)


def test_a_library_that_is_away_is_as_it_was_and_says_so_when_it_matters(tmp_path):
    async def main():
        storage, now_s = Broken(tmp_path), 100.0
        library = Library(storage, clock=lambda: now_s)
        made = await library.add(voice("a"), PARTS)
        storage.is_away = True
        now_s += 10
        assert (await library.now()).voices == {made.id: made}
        assert await library.get("a", NOBODY) == made
        with pytest.raises(StageUnavailable):
            await library.get("b", NOBODY)
        with pytest.raises(StageUnavailable):
            await library.recording(made)
        storage.is_away = False
        now_s += 10
        with pytest.raises(NotFound):
            await library.get("b", NOBODY)

    asyncio.run(main())


def test_looking_at_a_library_that_does_not_change_reads_one_small_object(tmp_path):
    class Counting(Folder):
        reads = 0
        listings = 0

        def read(self, path):
            self.reads += 1
            return super().read(path)

        def paths(self, folder):
            self.listings += 1
            return super().paths(folder)

    async def main():
        storage, now_s = Counting(tmp_path), 100.0
        library = Library(storage, clock=lambda: now_s)
        await library.add(voice("a"), PARTS)
        await library.now()
        reads, listings = storage.reads, storage.listings
        for _ in range(10):
            now_s += 1
            for _ in range(5):
                await library.now()
        assert storage.reads - reads == 10
        assert storage.listings == listings

    asyncio.run(main())


def test_however_many_miss_something_there_is_one_look_at_a_time_and_a_pause_between_two(tmp_path):
    class Counting(Folder):
        reads = 0

        def read(self, path):
            self.reads += 1
            return super().read(path)

    async def main():
        storage = Counting(tmp_path)
        one, other = Library(storage_at(str(tmp_path), {})), Library(storage)
        await other.now()
        made = await one.add(voice("a"), PARTS)
        assert await other.get("a", NOBODY) == made
        reads, began_s = storage.reads, time.monotonic()
        for _ in range(3):
            missed = await asyncio.gather(*(other.find("b", NOBODY) for _ in range(50)))
            assert missed == [None] * 50
        passed_s = time.monotonic() - began_s
        assert storage.reads - reads <= 1 + passed_s / AT_LEAST_S

    asyncio.run(main())


@pytest.mark.parametrize(
    ("look_s", "again_s"), [(0.0, AT_LEAST_S), (0.002, 0.02), (0.03, 0.1), (2.0, 0.1)]
)
def test_what_is_missed_is_looked_for_again_by_what_a_look_takes(tmp_path, look_s, again_s):
    """As often as a tenth of a thread's time allows, and no object store is asked all the time."""
    now_s = 100.0

    class Slow(Folder):
        def read(self, path):
            nonlocal now_s
            now_s += look_s
            return super().read(path)

    async def main():
        library = Library(Slow(tmp_path), clock=lambda: now_s)
        assert await library.find("a", NOBODY) is None
        assert library.again_s == pytest.approx(again_s)

    asyncio.run(main())
