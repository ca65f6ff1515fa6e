"""The order in which units are asked for, closed and handed on."""

import asyncio
from contextlib import aclosing

import pytest

from serve_app.errors import StageFailed
from serve_app.fakes import FakeSpeechDecoder, FakeTalker
from serve_app.http.live.speaking import speak_arriving
from serve_app.http.live.turns import Turns
from serve_app.http.live.utterance import Arrived
from serve_app.pipeline import synthesize
from serve_app.text.script import Unit
from serve_app.types import NamedVoice, SpeechRequest

REQUEST = SpeechRequest("id", "m", "", NamedVoice("v"), "auto", 5)
RATE_HZ = 24000


class Units:
    """What has been put in, until `is_whole`."""

    def __init__(self, *texts, is_whole=True):
        self.arrived = [Arrived(Unit(text), 0.1) for text in texts]
        self.is_whole = is_whole
        self.changed = asyncio.Event()

    def add(self, text, is_whole):
        self.arrived.append(Arrived(Unit(text), 0.1))
        self.is_whole = is_whole
        self.changed.set()

    @property
    def is_over(self):
        return self.is_whole and not self.arrived

    def next_now(self):
        return self.arrived.pop(0) if self.arrived else None

    async def next(self):
        while not self.arrived and not self.is_whole:
            self.changed.clear()
            await self.changed.wait()
        return self.next_now()


class Stages:
    def __init__(self, **talker):
        self.talker = FakeTalker(**{"num_frames": 4, "chunk_frames": (1, 2), **talker})
        self.decoder = FakeSpeechDecoder()

    def speak(self, request):
        return synthesize(self.talker, self.decoder, request)

    def spoken(self, units):
        return aclosing(speak_arriving(self.speak, REQUEST, units, RATE_HZ))

    @property
    def idle(self):
        return (self.talker.running, self.decoder.streams) == (0, 0)


def test_a_unit_is_asked_for_before_the_end_of_the_one_before_is_handed_on():
    async def main():
        stages = Stages()
        ended_at = {}
        async with stages.spoken(Units("One.", "Two.", "Three.")) as pieces:
            async for piece in pieces:
                await asyncio.sleep(0)
                if piece.reason is not None:
                    ended_at[piece.number] = len(stages.talker.requests)
        assert ended_at == {0: 2, 1: 3, 2: 3}
        assert [r.request_id for r in stages.talker.requests] == ["id.0", "id.1", "id.2"]
        first, *others = (request.ahead_s for request in stages.talker.requests)
        assert first is None
        assert all(0 < ahead_s <= number * 0.42 for number, ahead_s in enumerate(others, 1))
        assert stages.idle

    asyncio.run(main())


def test_late_text_is_waited_for_behind_the_pause_and_the_end_has_none():
    async def main():
        stages, units = Stages(), Units("One.", is_whole=False)
        pieces = []
        async with stages.spoken(units) as spoken:
            async for piece in spoken:
                pieces.append(piece)
                if piece.reason is not None and piece.number == 0:
                    assert stages.idle  # nothing is held while the text is late
                    asyncio.get_running_loop().call_soon(units.add, "Two.", True)
        lengths = [sum(len(p.samples) for p in pieces if p.number == n) for n in (0, 1)]
        assert lengths == [4 * 1920 + round(0.1 * RATE_HZ), 4 * 1920]

    asyncio.run(main())


@pytest.mark.parametrize("num_pieces", [1, 3])
def test_closing_closes_what_plays_and_what_has_been_asked_for(num_pieces):
    async def main():
        stages = Stages()
        async with stages.spoken(Units("One.", "Two.")) as pieces:
            for _ in range(num_pieces):
                await anext(pieces)
            assert not stages.idle
        assert stages.idle

    asyncio.run(main())


def test_a_gap_is_an_error():
    async def main():
        stages = Stages()

        async def holey(request):
            async with aclosing(stages.speak(request)) as chunks:
                async for chunk in chunks:
                    if chunk.first_sample != 1920:
                        yield chunk

        pieces = speak_arriving(holey, REQUEST, Units("One."), RATE_HZ)
        with pytest.raises(StageFailed):
            async for _ in pieces:
                pass
        assert stages.idle

    asyncio.run(main())


def test_turns_run_in_order_and_stop_ends_one_and_forgets_the_others():
    async def main():
        turns, log = Turns(), []

        def work(name, seconds=0.0):
            async def run():
                log.append(name)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    log.append(f"{name} ends")

            return run

        running = asyncio.create_task(turns.run())
        turns.add(work("a"))
        turns.add(work("b", 60))
        turns.add(work("c"))
        while "b" not in log:
            await asyncio.sleep(0)
        await turns.stop()
        assert log == ["a", "a ends", "b", "b ends"]
        await turns.stop()
        turns.add(work("d"))
        turns.close()
        await running
        assert log[4:] == ["d", "d ends"]

    asyncio.run(main())
