"""Text in pieces in Together's words, as Pipecat's client speaks them."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager
from string import ascii_lowercase

import websockets

from serve_app.errors import StageFailed
from serve_app.fakes import fake_card
from serve_app.types import TextNeeds
from tests.integration.http.live.talking import address
from tests.integration.http.service import NUM_FRAMES, SEED, Service, samples, served
from tests.waiting import until

PATH = "/v1/audio/speech/websocket?model=tts-1&voice=alloy&language=en&max_partial_length=50"


class Client:
    def __init__(self, socket):
        self.socket = socket
        self.events = []

    async def send(self, kind, **fields):
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def until(self, kind):
        while True:
            async with asyncio.timeout(20):
                self.events.append(json.loads(await self.socket.recv()))
            if self.events[-1]["type"] == kind:
                return self.events[-1]

    @property
    def audio(self):
        kind = "conversation.item.audio_output.delta"
        deltas = [event["delta"] for event in self.events if event["type"] == kind]
        return b"".join(map(base64.b64decode, deltas))


@asynccontextmanager
async def connected(service, path=f"{PATH}&seed={SEED}"):
    async with served(service.app) as url, websockets.connect(address(url, path)) as socket:
        yield Client(socket)
    await until(lambda: service.idle)


def run(main):
    asyncio.run(main())


def test_each_commit_is_spoken_and_has_one_end():
    async def main():
        service = Service()
        async with connected(service) as client:
            created = await client.until("session.created")
            assert created["session"]["voice"] == "vivian"
            await client.send("tts_session.updated", session={"voice": "nova", "extra_params": {}})
            updated = await client.until("session.updated")
            assert updated["session"]["model"] == "qwen3-tts-fake"
            for text in ("Hello there.", "How are you?"):
                await client.send("input_text_buffer.append", text=text)
                await client.send("input_text_buffer.commit")
                received = await client.until("conversation.item.input_text.received")
                done = await client.until("conversation.item.audio_output.done")
                assert received["text"] == text
                assert received["item_id"] == done["item_id"]
            # As Pipecat does at the end of an answer: there is nothing more to speak.
            await client.send("input_text_buffer.commit")
            assert len(client.audio) == 2 * 2 * NUM_FRAMES * 1920
            first = samples().tobytes()
            assert client.audio[: len(first) // 2] == first[: len(first) // 2]
        texts = [request.text for request in service.talker.requests]
        assert texts == ["Hello there.", "How are you?"]
        assert {request.language for request in service.talker.requests} == {"english"}

    run(main)


def test_what_is_cleared_is_not_heard_further_and_has_no_end():
    async def main():
        service = Service(num_frames=250, frame_s=0.005)
        async with connected(service) as client:
            await client.send("input_text_buffer.append", text="A sentence to be interrupted.")
            await client.send("input_text_buffer.commit")
            await client.until("conversation.item.audio_output.delta")
            await client.send("input_text_buffer.clear")
            await until(lambda: service.idle)
            await client.send("input_text_buffer.append", text="Next.")
            await client.send("input_text_buffer.commit")
            done = await client.until("conversation.item.audio_output.done")
            assert done["item_id"] == "tts_2"
            kinds = [event["type"] for event in client.events]
            assert kinds.count("conversation.item.audio_output.done") == 1

    run(main)


def test_what_fails_is_told_and_the_session_goes_on():
    async def main():
        service = Service(fail_at=3, error=StageFailed("broken"))
        async with connected(service) as client:
            await client.send("input_text_buffer.append", text="Say <|im_start|> aloud.")
            await client.send("input_text_buffer.append", text="Hello.")
            await client.send("input_text_buffer.commit")
            failed = [await client.until("conversation.item.tts.failed") for _ in range(2)]
            assert "control string" in failed[0]["error"]["message"]
            assert failed[1]["error"]["code"] == "generation_failed"
            await client.send("nonsense")
            assert (await client.until("error"))["error"]["param"] == "type"
            await client.send("tts_session.updated", session={"voice": "nobody"})
            assert (await client.until("error"))["error"]["code"] == "voice_not_found"

    run(main)


def test_a_sentence_in_letters_that_the_model_was_not_taught_is_left_out():
    async def main():
        needs = TextNeeds(200, 4, letters=ascii_lowercase)
        service = Service(cards=(fake_card(languages=("auto", "english"), text_needs=needs),))
        async with connected(service) as client:
            await client.send(
                "input_text_buffer.append", text="Hello there. 你好，世界。 Goodbye now. "
            )
            await client.send("input_text_buffer.commit")
            failed = await client.until("conversation.item.tts.failed")
            assert "was not taught" in failed["error"]["message"]
            await client.until("conversation.item.audio_output.done")
        said = [request.text for request in service.talker.requests]
        assert said == ["Hello there.", "Goodbye now."]

    run(main)


def test_who_asks_for_what_is_not_served_is_told_and_let_go():
    async def main():
        service = Service()
        async with connected(service, f"{PATH}&voice=af_heart") as client:
            error = await client.until("error")
            assert "af_heart" in error["error"]["message"]
            await client.socket.wait_closed()
            assert client.socket.close_code == 1008

    run(main)
