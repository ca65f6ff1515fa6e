"""Who waits for whom: listeners never for work in the background, that for everyone."""

import asyncio
from contextlib import aclosing
from dataclasses import replace

import pytest

from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.fakes import FakeSpeechDecoder, FakeTalker
from serve_app.http.background import Background
from serve_app.http.observe.record import Record, begin
from serve_app.metrics import NoRecorder
from serve_app.pipeline import join, synthesize
from serve_app.types import NamedVoice, SpeechRequest

REQUEST = SpeechRequest("id", "m", "Hello.", NamedVoice("v"), "auto", 5)


class Room:
    """Stages with `places`; `errors` are raised first, one by one."""

    def __init__(self, places=1, errors=(), **talker):
        self.talker = FakeTalker(num_frames=4, **talker)
        self.places = places
        self.errors = list(errors)
        self.flags = []
        self.ahead_s = []

    async def speak(self, request):
        self.flags.append(request.background)
        self.ahead_s.append(request.ahead_s)
        if self.errors:
            raise self.errors.pop(0)
        if self.talker.running >= self.places:
            raise Overloaded("full", 0.0)
        async with aclosing(synthesize(self.talker, FakeSpeechDecoder(), request)) as chunks:
            async for chunk in chunks:
                yield chunk


async def whole(chunks):
    async with aclosing(chunks):
        return await join(chunks)


async def soon(_):
    await asyncio.sleep(0.001)


def test_a_listener_takes_the_place_of_the_background_which_begins_again():
    async def main():
        room = Room(frame_s=0.01)
        background = Background(room.speak, 4, soon)
        later = asyncio.create_task(whole(background.speak(REQUEST)))
        while not room.talker.running:
            await asyncio.sleep(0)
        heard = await whole(background.live(REQUEST))
        again = await later
        assert heard.samples.tobytes() == again.samples.tobytes()
        assert room.flags[:3] == [True, False, False]
        assert room.talker.running == 0

    asyncio.run(main())


def test_nobody_waits_for_what_follows_in_the_background():
    room = Room()
    asyncio.run(whole(Background(room.speak, 4).speak(replace(REQUEST, ahead_s=2.0))))
    assert (room.flags, room.ahead_s) == ([True], [None])


def test_a_listener_is_refused_where_only_listeners_are_in_the_way():
    async def main():
        room = Room(frame_s=0.01)
        background = Background(room.speak, 4, soon)
        first = asyncio.create_task(whole(background.live(REQUEST)))
        while not room.talker.running:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await whole(background.live(REQUEST))
        assert len(room.flags) == 2
        await first

    asyncio.run(main())


def test_the_background_waits_for_what_is_full_or_away():
    async def main():
        room = Room(errors=[Overloaded("full"), StageUnavailable("starting"), Overloaded("full")])
        background = Background(room.speak, 1, soon)
        assert len((await whole(background.speak(REQUEST))).codes) == 4
        assert room.flags == [True] * 4

    asyncio.run(main())


def test_how_long_it_waited_for_room_is_in_the_record_of_the_request():
    async def main():
        now_s = 0.0

        async def sleep(_):
            nonlocal now_s
            now_s += 3.0

        room = Room(errors=[Overloaded("full"), Overloaded("full")])
        background = Background(room.speak, 1, sleep, lambda: now_s)
        record = Record()
        begin(record)
        await whole(background.speak(REQUEST))
        assert record.waited_s == 6.0
        # A listener that makes room, and one for whom there is some.
        room.talker = FakeTalker(num_frames=4, frame_s=0.01)
        later = asyncio.create_task(whole(background.speak(REQUEST)))
        while not room.talker.running:
            await asyncio.sleep(0)
        begin(listening := Record())
        await whole(background.live(REQUEST))
        assert listening.waited_s >= 3.0
        later.cancel()
        await asyncio.gather(later, return_exceptions=True)
        begin(at_once := Record())
        await whole(background.live(REQUEST))
        assert at_once.waited_s == 0.0

    asyncio.run(main())


def test_a_failure_is_not_waited_for():
    async def main():
        background = Background(Room(errors=[StageFailed("broken")]).speak, 1, soon)
        with pytest.raises(StageFailed):
            await whole(background.speak(REQUEST))

    asyncio.run(main())


def test_no_more_are_made_at_a_time_than_allowed():
    async def main():
        room = Room(places=9, frame_s=0.001)
        background = Background(room.speak, 2, soon)
        making = [asyncio.create_task(whole(background.speak(REQUEST))) for _ in range(6)]
        most = 0
        while not all(task.done() for task in making):
            most = max(most, room.talker.running)
            await asyncio.sleep(0)
        assert most == 2

    asyncio.run(main())


def test_who_stops_waiting_leaves_nothing_behind():
    async def main():
        room = Room(frame_s=30.0)
        background = Background(room.speak, 1, soon)
        making = asyncio.create_task(whole(background.speak(REQUEST)))
        while not room.talker.running:
            await asyncio.sleep(0)
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        assert room.talker.running == 0
        next_one = asyncio.create_task(whole(background.speak(REQUEST)))
        while not room.talker.running:
            await asyncio.sleep(0)
        next_one.cancel()

    asyncio.run(main())


def test_what_waits_for_one_model_is_in_no_other_models_way():
    async def main():
        full, free = Room(places=0), Room(frame_s=0.01)

        async def speak(request):
            room = full if request.model == "full" else free
            async with aclosing(room.speak(request)) as chunks:
                async for chunk in chunks:
                    yield chunk

        background = Background(speak, 1, soon)
        of_full = replace(REQUEST, model="full")
        waiting = asyncio.create_task(whole(background.speak(of_full)))
        made = asyncio.create_task(whole(background.speak(REQUEST)))
        while not free.talker.running:
            await asyncio.sleep(0)
        # A listener of the full one stops nothing that another model makes.
        with pytest.raises(Overloaded):
            await whole(background.live(of_full))
        assert len((await made).codes) == 4
        assert free.flags == [True]
        waiting.cancel()

    asyncio.run(main())


def test_there_is_an_end_to_those_who_wait_although_another_model_rests():
    async def main():
        room = Room(frame_s=30.0)
        background = Background(room.speak, 1, soon)
        resting = Background(Room().speak, 1, soon)
        background.look()
        other = asyncio.create_task(whole(background.speak(replace(REQUEST, model="other"))))
        while not room.talker.running:
            await asyncio.sleep(0)
        waiting = [asyncio.create_task(whole(background.speak(REQUEST))) for _ in range(100)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            background.look()
        resting.look()
        for task in (other, *waiting):
            task.cancel()
        await asyncio.gather(other, *waiting, return_exceptions=True)
        background.look()

    asyncio.run(main())


class Counted(NoRecorder):
    def __init__(self):
        self.names = []

    def count(self, metric, **labels):
        assert labels == {"model": "m"}
        self.names.append(metric.name)


@pytest.mark.parametrize(
    ("stage", "name"),
    [(None, "tts_refused_at_ingress_total"), ("talker", "tts_refused_by_stages_total")],
)
def test_a_listeners_request_that_is_refused_counts_once_however_often_it_asks(stage, name):
    async def main():
        counted = Counted()
        room = Room(places=0, frame_s=30.0)
        background = Background(room.speak, 4, soon, recorder=counted)
        room.errors = [Overloaded("full", 0.0, stage)]
        with pytest.raises(Overloaded):
            await whole(background.live(REQUEST))
        assert counted.names == [name]

        # What is in the background makes room for the next one, in vain until the end.
        room.places = 1
        making = asyncio.create_task(whole(background.speak(REQUEST)))
        while not room.talker.running:
            await asyncio.sleep(0)
        room.errors = [Overloaded("full", 0.0, stage)] * 9
        with pytest.raises(Overloaded):
            await whole(background.live(REQUEST))
        assert len(room.flags) > 3
        assert counted.names == [name] * 2
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)

        # One that is let in after all was not refused, nor is one in the background.
        counted.names.clear()
        room.errors.clear()
        making = asyncio.create_task(whole(background.speak(REQUEST)))
        while not room.talker.running:
            await asyncio.sleep(0)
        room.errors = [Overloaded("full", 0.0, stage)]
        heard = asyncio.create_task(anext(background.live(REQUEST)))
        while not room.talker.running or making.done():
            await asyncio.sleep(0)
        assert not counted.names
        for task in (making, heard):
            task.cancel()
        await asyncio.gather(making, heard, return_exceptions=True)

    asyncio.run(main())
