"""Models behind one ingress that come, go, break and are full, each by itself."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from typing import Any

import pytest

from serve_app.config import AdmissionSettings
from serve_app.errors import (
    Full,
    ModelStarting,
    Overloaded,
    StageFailed,
    StageUnavailable,
    UnknownModel,
)
from serve_app.fakes import FakeTalker, fake_card
from serve_app.http.catalog import Catalog
from serve_app.http.health import overall
from serve_app.http.served.models import Models
from serve_app.load.served import Served
from serve_app.metrics import Metric, NoRecorder
from serve_app.types import PcmChunk, SpeechRequest
from tests.unit.http.served.ways import POLICY, FakeWay, application
from tests.waiting import until


class Server(NoRecorder):
    """Models of fake ways."""

    def __init__(self, **ways: FakeWay) -> None:
        self.ways = ways
        self.catalog = Catalog()
        self.passed = 0
        self.counted: list[str] = []
        self.models = Models(
            self.catalog,
            lambda application, entry: self.ways[application],
            POLICY,
            self,
            lambda outcome, silent_s: None,
            own="own",
            passed=self._note_passed,
        )

    def count(self, metric: Metric, **labels: str) -> None:
        self.counted.append(f"{metric.name}:{labels['model']}")

    def _note_passed(self) -> None:
        self.passed += 1

    @property
    def names(self) -> list[str]:
        return [card.name for card in self.catalog.cards]

    def states(self) -> dict[str, str]:
        return {status.name: status.state for status in self.models.statuses()}

    async def speak(self, model: str, **fields: Any) -> int:
        request = SpeechRequest("r", model, "Hello.", None, "auto", seed=1, **fields)
        async with aclosing(self.models.speak(request)) as chunks:
            return sum([len(chunk.codes) async for chunk in chunks])


def test_models_are_served_as_they_come_and_forgotten_as_they_go() -> None:
    async def main() -> None:
        server = Server(
            own=FakeWay(fake_card(name="own", task="base")), other=FakeWay(fake_card(name="other"))
        )
        server.ways["other"].there.clear()
        server.models.follow([application("other"), application("own")])
        await until(lambda: server.states()["own"] == "healthy")
        assert server.names == ["own"]
        with pytest.raises(ModelStarting):
            server.catalog.find("other")
        server.ways["other"].there.set()
        await until(lambda: server.states() == {"own": "healthy", "other": "healthy"})
        # The own one is the default, whatever its task.
        assert server.names == ["own", "other"]
        assert await server.speak("other") == 4

        server.models.follow([application("own")])
        assert server.names == ["own"]
        with pytest.raises(UnknownModel):
            server.catalog.find("other")
        with pytest.raises(UnknownModel):
            await server.speak("other")
        server.models.follow([application("own"), application("other")])
        await until(lambda: server.names == ["own", "other"])
        server.models.close()

    asyncio.run(main())


def test_a_stream_goes_on_when_its_model_is_taken_away() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own")))
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})
        request = SpeechRequest("r", "own", "Hello.", None, "auto", seed=1)
        async with aclosing(server.models.speak(request)) as chunks:
            first = await anext(chunks)
            server.models.follow([application("own", state="stopping")])
            assert server.names == []
            rest = [chunk async for chunk in chunks]
        assert len(first.codes) + sum(len(chunk.codes) for chunk in rest) == 4
        server.models.close()

    asyncio.run(main())


def test_a_request_whose_model_goes_before_its_first_audio_hears_of_that() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own")))
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})
        gone = asyncio.Event()

        async def wait(pause_s: float) -> None:
            del pause_s
            await gone.wait()

        error = StageUnavailable("a replica stopped")
        server.ways["own"].talker = FakeTalker(fail_at=0, error=error, sleep=wait)
        asking = asyncio.create_task(server.speak("own"))
        await until(lambda: server.ways["own"].talker.running)
        server.models.follow([])
        gone.set()
        with pytest.raises(UnknownModel):
            await asking

    asyncio.run(main())


def test_nobody_waits_for_a_model_that_has_gone() -> None:
    """Its last replica may have ended before anybody knew, and the call finds none."""

    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own")))
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})

        async def for_ever(pause_s: float) -> None:
            del pause_s
            await asyncio.Event().wait()

        server.ways["own"].talker = talker = FakeTalker(num_frames=4, sleep=for_ever)
        asking = asyncio.create_task(server.speak("own"))
        await until(lambda: talker.running)
        server.models.follow([])
        with pytest.raises(UnknownModel):
            await asyncio.wait_for(asking, 20)
        assert not talker.running

    asyncio.run(main())


def test_what_replaces_a_model_is_asked_when_it_runs_and_not_before() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="before")))
        server.models.follow([application("own")])
        await until(lambda: server.names == ["before"])
        other = {"version": "2", "known_as": frozenset({"after"})}
        server.models.follow([application("own", state="starting", **other)])
        # The replica of before is still there, and would answer.
        assert server.names == []
        assert server.states() == {"own": "initializing"}
        with pytest.raises(ModelStarting):
            server.catalog.find("after")
        server.ways["own"].card = fake_card(name="after")
        server.models.follow([application("own", **other)])
        await until(lambda: server.names == ["after"])
        # A change in place is none.
        server.models.follow([application("own", state="starting", **other)])
        assert server.names == ["after"]
        server.models.close()

    asyncio.run(main())


def test_a_model_that_gets_other_settings_is_served_all_the_while() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own"), places=1))
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})
        # Replica by replica, and then all of them are new.
        server.models.follow([application("own", version="2", state="starting")])
        assert server.states() == {"own": "healthy"}
        assert await server.speak("own") == 4
        server.ways["own"].places = 2
        asked = len(server.ways["own"].asked)
        server.models.follow([application("own", version="2")])
        assert await server.speak("own") == 4
        await until(lambda: len(server.ways["own"].asked) > asked)
        assert server.states() == {"own": "healthy"}
        assert await server.speak("own") == 4
        server.models.close()

    asyncio.run(main())


def test_what_an_application_served_before_its_link_led_elsewhere_is_gone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Two applications are the same by what they were given, and that may be a link."""

    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="before"), places=1))
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"before": "healthy"})
        server.ways["own"].card = fake_card(name="later")
        server.models.follow([application("own", version="2")])
        await until(lambda: "later" in server.names)
        assert server.names == ["later"]
        assert await server.speak(server.catalog.default.name) == 4
        request = SpeechRequest("r", "later", "Hello.", None, "auto", seed=1)
        async with aclosing(server.models.speak(request)) as chunks:
            await anext(chunks)
            with pytest.raises(Overloaded):
                await server.speak("later")
        # Its gate stays, with the streams of before, and says whose they are now.
        assert "refused 1 requests for later: " in caplog.text
        server.models.close()

    asyncio.run(main())


def test_a_model_stays_ready_while_new_replicas_cannot_say_yet_what_they_serve() -> None:
    class Stumbling(FakeWay):
        fails = False

        async def ask(self) -> Served:
            if self.fails:
                self.asked.append("in vain")
                raise StageUnavailable("the replica that was asked has just gone")
            return await super().ask()

    async def main() -> None:
        way = Stumbling(fake_card(name="own"))
        server = Server(own=way)
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})
        way.fails = True
        server.models.follow([application("own", version="2")])
        await until(lambda: "in vain" in way.asked)
        assert server.states() == {"own": "healthy"}
        assert await server.speak("own") == 4
        # Nor does another change meanwhile begin with a first synthesis.
        server.models.follow([application("own", version="3")])
        assert server.states() == {"own": "healthy"}
        server.models.close()

    asyncio.run(main())


def test_streams_stay_counted_while_their_model_gets_other_settings() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own"), places=1))
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})
        request = SpeechRequest("r", "own", "Hello.", None, "auto", seed=1)
        async with aclosing(server.models.speak(request)) as before:
            await anext(before)
            server.ways["own"].places = 2
            asked = len(server.ways["own"].asked)
            server.models.follow([application("own", version="2")])
            await until(lambda: len(server.ways["own"].asked) > asked)
            # Two places now, one of which is taken.
            async with aclosing(server.models.speak(request)) as after:
                await anext(after)
                with pytest.raises(Overloaded):
                    await server.speak("own")
            assert await server.speak("own") == 4
        server.models.close()

    asyncio.run(main())


def test_what_is_known_of_replicas_is_out_of_date_once_a_model_has_spoken() -> None:
    """Serve's word of them, asked for now and then, may be that none runs yet."""

    async def main() -> None:
        way = FakeWay(fake_card(name="own"))
        way.there.clear()
        server = Server(own=way)
        server.models.follow([application("own", replicas={"Fused": {"ready": 1, "total": 2}})])
        assert (server.passed, server.states()) == (0, {"own": "initializing"})
        way.there.set()
        await until(lambda: server.passed)
        assert server.states() == {"own": "degraded"}
        server.models.follow([application("own")])
        assert (server.passed, server.states()) == (1, {"own": "healthy"})
        server.models.close()

    asyncio.run(main())


def test_a_model_that_is_full_or_broken_refuses_no_others() -> None:
    async def main() -> None:
        server = Server(
            full=FakeWay(fake_card(name="full"), places=1),
            broken=FakeWay(fake_card(name="broken")),
            fine=FakeWay(fake_card(name="fine")),
        )
        server.models.follow(map(application, ("full", "broken", "fine")))
        await until(lambda: set(server.states().values()) == {"healthy"})
        server.ways["broken"].talker = FakeTalker(fail_at=0, error=StageFailed("broken"))
        request = SpeechRequest("r", "full", "Hello.", None, "auto", seed=1)
        async with aclosing(server.models.speak(request)) as chunks:
            await anext(chunks)
            with pytest.raises(Overloaded):
                await server.speak("full")
            with pytest.raises(StageFailed):
                await server.speak("broken")
            assert await server.speak("fine") == 4
            server.models.look()  # it may be for another one
            assert not server.counted
            server.models.follow([application("full")])
            with pytest.raises(Full):
                server.models.look()
            assert server.counted == ["tts_refused_at_ingress_total:full"]
            # More may wait, from now on.
            server.models.limit({"Full": AdmissionSettings(max_queued=4, max_wait_s=60.0)})
            server.models.look()
            server.models.limit({})
            with pytest.raises(Overloaded):
                server.models.look()
        assert await server.speak("full") == 4
        server.models.close()

    asyncio.run(main())


def test_who_may_be_for_another_model_is_no_part_of_a_models_crowd() -> None:
    """Before it is known whose they are, a full model is asked of all that come to an idle one."""

    async def main() -> None:
        server = Server(
            full=FakeWay(fake_card(name="full"), places=8), idle=FakeWay(fake_card(name="idle"))
        )
        server.models.follow(map(application, ("full", "idle")))
        await until(lambda: set(server.states().values()) == {"healthy"})
        server.models.limit({}, AdmissionSettings(max_queued=1, max_wait_s=1.0))
        request = SpeechRequest("r", "full", "Hello.", None, "auto", seed=1)
        asked = server.ways["full"].requests
        async with AsyncExitStack() as inside:

            async def begun() -> AsyncGenerator[PcmChunk, None]:
                chunks = server.models.speak(request)
                await inside.enter_async_context(aclosing(chunks))
                await anext(chunks)
                return chunks

            streams = [await begun() for _ in range(9)]
            for _ in range(100):
                server.models.look(priority=9)
            assert not server.counted
            await streams[0].aclose()
            # None of those was refused by it, and none of a higher priority came to it.
            await begun()
            assert asked[-1].longest_wait_s is None
            # Where there is no other one, all that come are its own crowd.
            server.models.follow([application("full")])
            for _ in range(100):
                with pytest.raises(Full):
                    server.models.look()
            await streams[1].aclose()
            await begun()
            assert asked[-1].longest_wait_s == pytest.approx(1.0 / 8)
        server.models.close()

    asyncio.run(main())


def test_of_two_that_serve_one_name_the_second_waits_for_the_first_to_go() -> None:
    async def main() -> None:
        server = Server(a=FakeWay(fake_card(name="same")), b=FakeWay(fake_card(name="same")))
        server.models.follow([application("a")])
        await until(lambda: server.names == ["same"])
        server.models.follow([application("a"), application("b")])
        await until(lambda: "application 'a' serves" in str(reasons(server)["b"]))
        await until(lambda: server.states() == {"same": "healthy", "b": "initializing"})
        server.models.follow([application("b")])
        await until(lambda: server.names == ["same"])
        server.models.close()

    asyncio.run(main())


def reasons(server: Server) -> dict[str, str | None]:
    return {status.application: status.reason for status in server.models.statuses()}


def test_what_failed_to_start_says_why() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own")))
        failed = application("other", state="failed", replicas={}, reason="no such folder")
        dead = application("own", replicas={"Fused": {"ready": 0, "total": 1}})
        server.models.follow([application("own"), failed, application("theirs", entry="")])
        await until(lambda: server.states() == {"own": "healthy", "other": "unhealthy"})
        assert reasons(server)["other"] == "no such folder"
        server.models.follow([dead])
        assert server.states() == {"own": "unhealthy"}
        assert reasons(server) == {"own": "no running replica of Fused"}
        waking = {**application("own").replicas, "VoiceEncoder": {"ready": 0, "total": 1}}
        server.models.follow([application("own", replicas=waking)])
        assert server.states() == {"own": "healthy"}
        server.models.follow([application("own", state="failed", reason="wrong arguments")])
        assert server.states() == {"own": "degraded"}
        server.models.close()

    asyncio.run(main())


def test_what_the_cluster_has_too_little_of_is_said_with_what_comes_of_it() -> None:
    why = "Talker has no place for 1 of 2 replicas: each takes a whole GPU"

    async def main() -> None:
        way = FakeWay(fake_card(name="own"))
        way.there.clear()
        server = Server(own=way)
        for ready, state, reason in (
            (0, "initializing", why),
            (1, "degraded", why),
            (0, "unhealthy", f"no running replica of Talker; {why}"),
        ):
            replicas = {"Fused": {"ready": 1, "total": 1}, "Talker": {"ready": ready, "total": 2}}
            server.models.follow([application("own", replicas=replicas, lacks=why)])
            if ready:
                way.there.set()
            await until(lambda: server.states() == {"own": state})  # noqa: B023
            assert reasons(server) == {"own": reason}
        server.models.close()
        # What its replica has failed by counts for more.
        failed = application("new", state="starting", reason="no memory", lacks=why)
        server = Server(new=FakeWay(fake_card(name="new")))
        server.models.follow([failed])
        assert reasons(server) == {"new": "no memory"}
        server.models.close()

    asyncio.run(main())


def test_what_a_replica_fails_by_is_said_while_serve_tries_again() -> None:
    async def main() -> None:
        way = FakeWay(fake_card(name="own"))
        way.there.clear()
        server = Server(own=way)
        why = "Fused failed to start and is tried again: no memory"
        nothing = {"Fused": {"ready": 0, "total": 1}}
        starting = application("own", state="starting", replicas=nothing)
        for replicas in ({}, nothing):
            now = dataclasses.replace(starting, replicas=replicas)
            server.models.follow([now])
            assert why not in str(reasons(server)["own"])
            server.models.follow([dataclasses.replace(now, reason=why)])
            assert server.models.statuses()[0].state == "initializing"
            assert reasons(server) == {"own": why}
        # Serve forgets it while the next one takes long.
        server.models.follow([starting])
        assert reasons(server) == {"own": why}
        way.there.set()
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})
        assert reasons(server) == {"own": None}
        server.models.close()

    asyncio.run(main())


def test_only_an_application_that_may_be_a_models_own_is_waited_for() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own")))
        other = application("other", replicas={})
        serves = server.catalog.serves
        assert serves("own") is None  # as long as nothing is known
        for coming, gone in (
            ([], False),
            ([dataclasses.replace(other, state="starting", known_as=frozenset({"other"}))], False),
            ([dataclasses.replace(other, state="failed", known_as=frozenset({"other"}))], False),
            # Its own, by whatever name, and one that may turn out to be its own.
            ([dataclasses.replace(other, state="starting", known_as=frozenset({"gone"}))], None),
            ([dataclasses.replace(other, state="failed", known_as=frozenset({"gone"}))], None),
            ([dataclasses.replace(other, state="starting", is_named=False)], None),
            ([dataclasses.replace(other, state="failed", is_named=False)], False),
        ):
            server.models.follow([application("own"), *coming])
            await until(lambda: serves("own"))
            assert serves("Gone") is gone, coming
        server.models.close()

    asyncio.run(main())


def test_recordings_go_to_the_encoder_of_the_model_that_speaks_with_them() -> None:
    async def main() -> None:
        cards = {name: fake_card(name=name, task="base") for name in ("own", "larger")}
        cards["named"] = fake_card(name="named")
        server = Server(**{name: FakeWay(card) for name, card in cards.items()})
        server.models.follow(map(application, cards))
        await until(lambda: set(server.states().values()) == {"healthy"})
        for name in ("own", "larger"):
            found = server.models.encoder_of(cards[name])
            assert found is server.ways[name].voice_encoder
        assert server.models.encoder_of(cards["named"]) is None
        server.models.follow([application("own")])
        assert server.models.encoder_of(cards["larger"]) is None
        server.models.close()

    asyncio.run(main())


def test_a_model_speaks_while_its_voice_encoder_starts() -> None:
    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own", task="base")))
        running = application("own")
        starts = {**running.replicas, "VoiceEncoder": {"ready": 0, "total": 1}}
        server.models.follow([dataclasses.replace(running, replicas=starts)])
        await until(lambda: server.states() == {"own": "healthy"})
        assert overall("own", starts, server.models.statuses(), {}).state == "healthy"
        server.models.close()

    asyncio.run(main())


def test_a_model_that_wakes_up_keeps_the_server_in_service() -> None:
    """It was let sleep, and who asks for it waits; another one may not take it for broken."""

    async def main() -> None:
        server = Server(own=FakeWay(fake_card(name="own")))
        server.models.follow([application("own")])
        await until(lambda: server.states() == {"own": "healthy"})
        for total, waking, state in (
            (0, False, "healthy"),
            (1, True, "degraded"),
            (1, False, "unhealthy"),
        ):
            replicas = {"Fused": {"ready": 0, "total": total}}
            names = frozenset({"Fused"} if waking else ())
            server.models.follow([application("own", replicas=replicas, waking=names)])
            status = overall("own", replicas, server.models.statuses(), {})
            assert (status.state, status.can_serve) == (state, state != "unhealthy")
            assert ("waking" in (status.reason or "")) == waking
        server.models.close()

    asyncio.run(main())
