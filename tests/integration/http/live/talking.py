"""A client of the WebSocket for text in pieces, which keeps what it gets."""

import asyncio
import base64
import json
from contextlib import asynccontextmanager

import websockets

from tests.integration.http.service import Service, served

PATH = "/v1/audio/speech/stream"
TEXT = "As far as I know, this is so. And that is so as well. The end"
UNITS = ["As far as I know,", "this is so.", "And that is so as well.", "The end"]


class Talk:
    def __init__(self, socket):
        self.socket = socket
        self.messages = []
        self.audio = {}

    async def send(self, kind, **fields):
        await self.socket.send(json.dumps({"type": kind, **fields}))

    async def say(self, text=TEXT, size=4):
        """The text as a language model gives it out, and its end."""
        for start in range(0, len(text), size):
            await self.send("input.text", text=text[start : start + size])
            await asyncio.sleep(0)
        await self.send("input.done")

    async def next(self):
        """The next message that is not audio; what is goes to `audio`, by utterance and unit."""
        place = None
        while True:
            async with asyncio.timeout(20):
                raw = await self.socket.recv()
            if isinstance(raw, bytes):
                last = self.messages[-1]
                place = last["utterance_index"], last["sentence_index"]
                self.audio.setdefault(place, []).append(raw)
                continue
            message = json.loads(raw)
            if message["type"] == "audio.chunk":
                place = message["utterance_index"], message["sentence_index"]
                assert message["timestamps"] is None
                self.audio.setdefault(place, []).append(base64.b64decode(message["audio_b64"]))
                continue
            self.messages.append(message)
            return message

    async def until(self, kind):
        while (message := await self.next())["type"] != kind:
            pass
        return message

    def of(self, kind):
        return [message for message in self.messages if message["type"] == kind]

    @property
    def data(self):
        """All audio, in the order it came."""
        return b"".join(b"".join(pieces) for pieces in self.audio.values())


@asynccontextmanager
async def talking(service=None, **config):
    """A configured connection to a service; both are idle afterwards."""
    service = service or Service()
    async with served(service.app) as url, websockets.connect(address(url)) as socket:
        talk = Talk(socket)
        await talk.send("session.config", **{"response_format": "pcm", "seed": 3, **config})
        yield talk
    assert service.idle


def address(url, path=PATH):
    return url.replace("http", "ws", 1) + path
