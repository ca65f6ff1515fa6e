"""Who gets past the ingress into the stages, and who is refused before they hear of it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest

from serve_app.errors import Full, Overloaded
from serve_app.fakes import fake_codes
from serve_app.load.admission import Admission
from serve_app.load.gate import Gate, StagePlaces, elsewhere
from serve_app.load.places import Places
from serve_app.types import CodecFrames, SpeechRequest

PLACES = 3
REQUEST = SpeechRequest("r", "m", "Hello.", None, "auto", seed=1)


def replicas(*keys: str) -> Places[str]:
    places = Places[str](lambda: 0.0)
    places.set_live(keys)
    return places


class Replica:
    """Makes one frame of each request once it may; `refuses` so many first, and what comes when its
    `places` are taken.
    """

    def __init__(self, refuses: int = 0, places: int = 100) -> None:
        self.may_end = asyncio.Event()
        self.asked = 0
        self.longest_waits_s: list[float | None] = []
        self._refuses = refuses
        self._places = places
        self._inside = 0

    async def speak(
        self, request: SpeechRequest, done: np.ndarray | None
    ) -> AsyncGenerator[CodecFrames, None]:
        del done
        self.asked += 1
        self.longest_waits_s.append(request.longest_wait_s)
        if self.asked <= self._refuses or self._inside >= self._places:
            raise Overloaded("full")
        self._inside += 1
        try:
            yield CodecFrames(fake_codes(1, 0), 0)
            await self.may_end.wait()
            yield CodecFrames(fake_codes(1, 1), 1, "stop")
        finally:
            self._inside -= 1


def gate_of(*stages: Places[str], places: int = PLACES) -> Gate:
    admission = Admission(max_queued=4, max_wait_s=0.0)
    return Gate([StagePlaces(lambda s=s: s, places) for s in stages], admission, model="m")


async def all_of(frames: AsyncGenerator[CodecFrames, None]) -> int:
    async with aclosing(frames):
        return len([item async for item in frames])


async def burst(gate: Gate, replica: Replica, num: int, request: SpeechRequest = REQUEST):
    """What became of `num` requests at the same moment: those under way, and the refusals."""
    call = gate.into(replica.speak)
    tasks = [asyncio.create_task(all_of(call(request, None))) for _ in range(num)]
    for _ in range(5):
        await asyncio.sleep(0)
    over = [task for task in tasks if task.done()]
    assert all(isinstance(task.exception(), Overloaded) for task in over)
    return [task for task in tasks if not task.done()], len(over)


def test_of_a_burst_as_many_come_in_as_all_live_replicas_hold() -> None:
    async def main() -> None:
        live, replica = replicas("a", "b"), Replica()
        gate = gate_of(live)
        gate.look()
        running, refused = await burst(gate, replica, 20)
        assert (len(running), refused, replica.asked) == (6, 14, 6)
        with pytest.raises(Overloaded):
            gate.look()
        replica.may_end.set()
        assert await asyncio.gather(*running) == [2] * 6
        gate.look()

    asyncio.run(main())


def test_a_piece_that_goes_on_with_what_is_heard_waits_where_a_new_one_is_refused() -> None:
    async def main() -> None:
        gate, replica = gate_of(replicas("a")), Replica()
        running, _ = await burst(gate, replica, PLACES)
        assert (await burst(gate, replica, 1))[1] == 1
        waiting, refused = await burst(gate, replica, 5, replace(REQUEST, ahead_s=2.0))
        # As many as may wait, for however long.
        assert (len(waiting), refused) == (4, 1)
        replica.may_end.set()
        await asyncio.gather(*running, *waiting)

    asyncio.run(main())


def test_what_other_ingresses_have_there_takes_places() -> None:
    async def main() -> None:
        live = replicas("a", "b")
        live.heard("b", 2)
        replica = Replica(places=4)
        running, _ = await burst(gate_of(live), replica, 20)
        assert len(running) == 4
        # No more are asked for than there might be, since all of others' streams may have ended.
        assert replica.asked <= 6 + 2
        for task in running:
            task.cancel()

    asyncio.run(main())


def test_a_replica_that_seems_full_is_asked_where_nobody_may_wait() -> None:
    async def main() -> None:
        now_s, live, replica = 100.0, replicas("a"), Replica(refuses=1)
        admission = Admission(max_queued=4, max_wait_s=0.08)
        gate = Gate([StagePlaces(lambda: live, PLACES)], admission, lambda: now_s, model="m")
        call = gate.into(replica.speak)
        replica.may_end.set()
        live.heard("a", PLACES)
        gate.look()
        with pytest.raises(Overloaded):
            await all_of(call(REQUEST, None))
        # It has just said so.
        with pytest.raises(Full):
            gate.look()
        with pytest.raises(Full):
            await all_of(call(REQUEST, None))
        assert replica.asked == 1
        # One of the others has ended since.
        now_s += 0.11
        gate.look()
        assert await all_of(call(REQUEST, None)) == 2
        assert replica.longest_waits_s == [pytest.approx(0.08)] * 2
        # A place every 0.03 s: one may be waited for, so that counts may be one too many.
        for _ in range(200):
            admission.note(0.09)
        live.heard("a", PLACES)
        gate.look()
        live.heard("a", PLACES + 5)
        with pytest.raises(Full):
            gate.look()

    asyncio.run(main())


def test_where_the_own_streams_take_all_places_nobody_is_asked() -> None:
    async def main() -> None:
        gate, replica = gate_of(replicas("a")), Replica()
        running, _ = await burst(gate, replica, 9)
        assert (len(running), replica.asked) == (3, 3)
        for task in running:
            task.cancel()

    asyncio.run(main())


def test_the_stage_with_the_fewest_places_decides() -> None:
    async def main() -> None:
        gate = gate_of(replicas("a", "b"), replicas("t"))
        running, _ = await burst(gate, Replica(), 20)
        assert len(running) == PLACES
        for task in running:
            task.cancel()

    asyncio.run(main())


def test_a_stream_that_was_heard_already_is_let_in_where_others_are_refused() -> None:
    async def main() -> None:
        gate, replica = gate_of(replicas("a")), Replica()
        running, refused = await burst(gate, replica, 4)
        assert (len(running), refused) == (3, 1)
        going_on = gate.into(replica.speak)(REQUEST, fake_codes(1, 0))
        await anext(going_on)
        await going_on.aclose()
        for task in running:
            task.cancel()

    asyncio.run(main())


def test_a_listener_is_read_where_work_in_the_background_would_give_way() -> None:
    async def main() -> None:
        gate, replica = gate_of(replicas("a", "b", "c")), Replica()
        background = replace(REQUEST, background=True)
        working, refused = await burst(gate, replica, 9, background)
        assert (len(working), refused) == (7, 2)
        listening, _ = await burst(gate, replica, 9)
        assert len(listening) == 2
        gate.look()
        for task in (*working, *listening):
            task.cancel()

    asyncio.run(main())


def test_a_higher_priority_takes_the_last_places_for_as_long_as_it_comes() -> None:
    async def main() -> None:
        now_s, live, replica = 0.0, replicas("a"), Replica()
        admission = Admission(max_queued=4, max_wait_s=0.0)
        gate = Gate([StagePlaces(lambda: live, 16)], admission, lambda: now_s, model="m")
        first, _ = await burst(gate, replica, 1, replace(REQUEST, priority=5))
        # An eighth is left, to those of at least as high a priority.
        usual, refused = await burst(gate, replica, 16)
        assert (len(usual), refused) == (13, 3)
        with pytest.raises(Overloaded, match="higher priority"):
            gate.look()
        gate.look(5)
        more, refused = await burst(gate, replica, 3, replace(REQUEST, priority=7))
        assert (len(more), refused) == (2, 1)
        with pytest.raises(Overloaded):
            gate.look(7)
        for task in (*first, *more):
            task.cancel()
        await asyncio.gather(*first, *more, return_exceptions=True)
        # Once none has come for a minute, the places are for all.
        now_s = 61.0
        last, refused = await burst(gate, replica, 3)
        assert (len(last), refused) == (3, 0)
        for task in (*usual, *last):
            task.cancel()

    asyncio.run(main())


def test_of_a_crowd_a_replica_lets_nobody_wait_for_longer_than_the_gate_does() -> None:
    """Several ingresses may give the same place away at once; only the replica counts them all."""

    async def main() -> None:
        live, replica = replicas("a"), Replica()
        replica.may_end.set()
        admission = Admission(max_queued=4, max_wait_s=0.8)
        gate = Gate([StagePlaces(lambda: live, PLACES)], admission, model="m")
        call = gate.into(replica.speak)
        await all_of(call(REQUEST, None))
        live.heard("a", 100)
        for _ in range(10):
            with pytest.raises(Overloaded):
                gate.look()
        live.heard("a", 0)
        await all_of(call(REQUEST, None))
        await all_of(call(REQUEST, fake_codes(1, 0)))
        for _ in range(100):
            gate.look()
        await all_of(call(REQUEST, None))
        assert replica.longest_waits_s == [None, pytest.approx(0.1), None, None]

    asyncio.run(main())


def test_nobody_is_refused_before_anything_is_known() -> None:
    async def main() -> None:
        gate = Gate([StagePlaces(lambda: None, 1)], Admission(0, 0.0), model="m")
        gate.look()
        running, refused = await burst(gate, Replica(), 9)
        assert (len(running), refused) == (9, 0)
        for task in running:
            task.cancel()

    asyncio.run(main())


def test_what_one_replica_refuses_is_asked_of_another_while_one_may_have_a_place() -> None:
    async def main() -> None:
        live, replica = replicas("a", "b", "c"), Replica(refuses=1)
        replica.may_end.set()
        call = elsewhere(replica.speak, StagePlaces(lambda: live, PLACES))
        assert await all_of(call(REQUEST, None)) == 2
        assert replica.asked == 2

        # Of those that seem full one is asked: it may not be any more.
        for free, asked in ((0, 2), (1, 3)):
            for key, num_free in (("a", 0), ("b", 0), ("c", free)):
                live.heard(key, PLACES - num_free)
            full = Replica(refuses=9)
            call = elsewhere(full.speak, StagePlaces(lambda: live, PLACES))
            with pytest.raises(Overloaded):
                await all_of(call(REQUEST, None))
            assert full.asked == asked

    asyncio.run(main())
