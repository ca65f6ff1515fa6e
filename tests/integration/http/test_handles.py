"""Streams through deployment handles, and what is made good when a replica is lost."""

import asyncio
import pickle

import openai
import pytest
from ray.exceptions import ActorDiedError

from serve_app.deployments.calls import Refused, Told, through
from serve_app.errors import Overloaded
from serve_app.fakes import FakeTalker
from serve_app.load.streams import CALLING, Streams
from serve_app.pipeline import join, synthesize
from serve_app.resumption import Policy, resumed
from serve_app.types import NamedVoice, SpeechRequest
from tests.integration.http.service import (
    CARD,
    NUM_FRAMES,
    SCHEDULE,
    SEED,
    Service,
    create,
    samples,
)


class FakeHandle:
    """A deployment handle whose calls are served by `speak(request, done)`, pickled as by Serve,
    each of them one of the streams of `replica`.
    """

    def __init__(self, speak, replica=None):
        self.speak = self
        self._speak = speak
        self._replica = replica
        self.cancelled = 0

    def options(self, *, stream, request_serialization, response_serialization):
        assert stream
        assert request_serialization == response_serialization == "pickle"
        return self

    def remote(self, request, done):
        CALLING.get().join(self._replica)
        handle, chunks = self, self._speak(*pickle.loads(pickle.dumps((request, done))))

        class Response:
            def __aiter__(self):
                return self

            async def __anext__(self):
                return pickle.loads(pickle.dumps(await anext(chunks)))

            def cancel(self):
                handle.cancelled += 1

        return Response()


class OverHandle(Service):
    """A service whose stages are called through a handle, and fail as told, call by call."""

    def __init__(self, *failures):
        super().__init__()
        self.failures = list(failures)
        self.done = []
        self.handle = FakeHandle(self.remote_speak)
        self.resumed = resumed(through(self.handle, "speak"), Policy(5.0, 5.0, 20.0, pause_s=0.0))

    def speak(self, request):
        return self.resumed(request)

    def remote_speak(self, request, done):
        self.done.append(0 if done is None else len(done))
        fail_at, error = self.failures.pop(0)
        talker = FakeTalker(NUM_FRAMES, chunk_frames=SCHEDULE, fail_at=fail_at, error=error)
        return synthesize(talker, self.decoder, request, done)


@pytest.mark.parametrize(("fail_at", "resumed_at"), [(0, 0), (1, 1), (5, 3), (9, 7)])
def test_a_lost_replica_is_made_good_by_another_one(fail_at, resumed_at):
    service = OverHandle((fail_at, ActorDiedError()), (None, None))
    response = asyncio.run(create(service, response_format="pcm"))
    assert response.content == samples().tobytes()
    assert service.done == [0, resumed_at]
    assert service.handle.cancelled == 0


def test_a_request_that_ends_two_replicas_is_an_error():
    service = OverHandle((0, ActorDiedError()), (0, ActorDiedError()))
    with pytest.raises(openai.InternalServerError) as caught:
        asyncio.run(create(service))
    assert caught.value.status_code == 500
    assert service.done == [0, 0]


def test_only_a_loss_is_tried_again():
    service = OverHandle((0, Overloaded("full")))
    with pytest.raises(openai.RateLimitError):
        asyncio.run(create(service))
    assert service.done == [0]


def test_what_a_replica_tells_of_its_streams_is_heard_and_its_items_are_as_they_were():
    decoder = Service().decoder

    async def tell(request, done):
        talker = FakeTalker(NUM_FRAMES, chunk_frames=SCHEDULE)
        num_streams = 60
        async for chunk in synthesize(talker, decoder, request, done):
            yield Told(chunk, num_streams)
            num_streams += 1

    async def main():
        heard = []
        call = through(FakeHandle(tell, Streams(told=heard.append)), "speak")
        request = SpeechRequest("r", CARD.name, "Hello.", NamedVoice("vivian"), "auto", SEED)
        whole = await join(call(request, None))
        assert whole.samples.tobytes() == samples().tobytes()
        assert len(heard) > 2
        assert heard == list(range(60, 60 + len(heard)))

    asyncio.run(main())


def test_a_replica_refuses_with_a_value():
    async def refuse(request, done):
        yield Refused(Overloaded(f"no room for {request.text}", 2.5, "talker"))

    async def main():
        told = []
        replica = Streams(lambda: told.append("refused"))
        handle = FakeHandle(refuse, replica)
        call = through(handle, "speak")
        request = SpeechRequest("r", CARD.name, "Hello.", NamedVoice("vivian"), "auto", SEED)
        with pytest.raises(Overloaded, match=r"no room for Hello\.") as caught:
            await anext(call(request, None))
        assert (caught.value.retry_after_s, caught.value.stage) == (2.5, "talker")
        assert handle.cancelled == 0
        assert told == ["refused"]
        assert not replica.members

    asyncio.run(main())


def test_a_call_cancelled_by_the_other_side_is_a_loss():
    service = OverHandle((0, asyncio.CancelledError()), (None, None))
    response = asyncio.run(create(service, response_format="pcm"))
    assert response.content == samples().tobytes()


def test_closing_cancels_the_call():
    async def main():
        service = OverHandle((None, None))
        chunks = service.speak(
            SpeechRequest("r", CARD.name, "Hello.", NamedVoice("vivian"), "auto", SEED)
        )
        await anext(chunks)
        await chunks.aclose()
        assert service.handle.cancelled == 1

    asyncio.run(main())
