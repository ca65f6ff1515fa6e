"""An ingress that is to end: what is open goes on, nothing new begins, and a cut is told."""

import asyncio
import json
import socket
from contextlib import AsyncExitStack

import httpx2
import numpy as np
import pytest
import websockets
from uvicorn.protocols.websockets.auto import AutoWebSocketsProtocol

from serve_app.deployments.ray_serve import sockets
from serve_app.http.draining.drain import Drain
from tests.integration.http.jobs.test_jobs import PATH as LONG
from tests.integration.http.jobs.test_jobs import Reading, created, in_state, shown
from tests.integration.http.live.talking import UNITS, Talk, address
from tests.integration.http.service import NUM_FRAMES, Service, samples, served
from tests.waiting import until

PATH = "/v1/audio/speech"
GOING_AWAY, RESTART = 1001, 1012
BODY = {"input": "Hello.", "voice": "alloy", "seed": 3, "response_format": "pcm"}
# Of a stream that lasts until it is cut.
ENDLESS = {"num_frames": 10_000, "frame_s": 0.02}
SLOW = {"frame_s": 0.03}


def pcm(data):
    return np.frombuffer(data, "<i2")


class Client:
    """A service behind a real socket, and its client; a context."""

    def __init__(self, **talker):
        self.service = Service(**talker)
        self.drain = self.service.drain
        self.stopping = asyncio.Event()

    async def __aenter__(self):
        self._stack = AsyncExitStack()
        server = served(self.service.app, self.stopping)
        self.url = await self._stack.enter_async_context(server)
        client = httpx2.AsyncClient(base_url=self.url, timeout=20)
        self.http = await self._stack.enter_async_context(client)
        return self

    async def __aexit__(self, *error):
        await self._stack.aclose()
        assert self.service.idle
        assert self.drain.num_open == 0

    async def begin(self, **fields):
        """A task that has the answer's body, once the speech has begun."""

        async def ask():
            pieces = []
            async with self.http.stream("POST", PATH, json={**BODY, **fields}) as answer:
                try:
                    async for piece in answer.aiter_bytes():
                        pieces.append(piece)
                        begun.set()
                except httpx2.RemoteProtocolError:
                    pieces.append(None)
            return pieces

        begun = asyncio.Event()
        asking = asyncio.create_task(ask())
        await begun.wait()
        return asking

    async def talk(self):
        """A session in which a first unit is heard, whose text goes on."""
        socket = await self._stack.enter_async_context(websockets.connect(address(self.url)))
        talk = Talk(socket)
        await talk.send("session.config", audio_transport="base64", response_format="pcm", seed=3)
        await talk.send("input.text", text="As far as I know, ")
        await talk.until("audio.start")
        return talk


async def closed(talk):
    """The code of the server's end, whatever it says before."""
    try:
        while True:
            await talk.next()
    except websockets.ConnectionClosed as end:
        return end.rcvd.code


def test_what_is_open_goes_on_and_nothing_new_begins():
    async def main():
        async with Client(**SLOW) as client:
            asking = await client.begin()
            client.drain.begin()
            assert client.drain.num_open == 1
            refused = await client.http.post(PATH, json=BODY)
            assert refused.status_code == 503
            error = refused.json()["error"]
            assert (error["type"], error["code"]) == ("server_error", "server_draining")
            assert "shutting down" in error["message"]
            assert (refused.headers["retry-after"], refused.headers["connection"]) == ("5", "close")
            for path in ("/v1/audio/speech/stream", "/v1/realtime"):
                with pytest.raises(websockets.InvalidStatus) as status:
                    await websockets.connect(address(client.url, path))
                assert status.value.response.status_code == 503
                assert status.value.response.headers["retry-after"] == "5"
            # What only looks may.
            assert (await client.http.get("/v1/models")).status_code == 200
            assert np.array_equal(pcm(b"".join(await asking)), samples())

    asyncio.run(main())


def test_it_is_not_ready_and_well():
    async def main():
        async with Client() as client:
            assert (await client.http.get("/ready")).status_code == 200
            client.drain.begin()
            ready, health = [await client.http.get(path) for path in ("/ready", "/health")]
            assert (ready.status_code, ready.json()["ready"]) == (503, False)
            assert "shutting down" in ready.json()["reason"]
            assert (health.status_code, health.json()["status"]) == (200, "draining")

    asyncio.run(main())


def test_an_utterance_is_finished_with_the_text_that_comes_and_no_other_one_begins():
    async def main():
        async with Client(**SLOW) as client:
            talk = await client.talk()
            client.drain.begin()
            await talk.send("input.text", text="this is so.")
            await talk.send("input.done")
            await talk.send("input.text", text="Another one.")
            error = await talk.until("error")
            assert error["error"]["code"] == "server_draining"
            done = await talk.until("session.done")
            assert done["total_sentences"] == 2
            assert await closed(talk) == GOING_AWAY
            assert [unit["sentence_text"] for unit in talk.of("audio.start")] == UNITS[:2]
            pauses = round(0.05 * 24000)
            assert len(pcm(talk.data)) == 2 * NUM_FRAMES * 1920 + pauses

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/audio/speech/stream", "/v1/realtime"])
@pytest.mark.parametrize(("end", "code"), [(Drain.begin, GOING_AWAY), (Drain.leave, RESTART)])
def test_a_session_that_speaks_nothing_is_closed_at_once(path, end, code):
    async def main():
        async with Client() as client, websockets.connect(address(client.url, path)) as socket:
            if path == "/v1/realtime":
                assert json.loads(await socket.recv())["type"] == "session.created"
            await until(lambda: client.drain.num_open == 1)
            end(client.drain)
            await socket.wait_closed()
            assert socket.close_code == code

    asyncio.run(main())


def test_an_utterance_is_finished_where_the_ingress_leaves_and_requests_are_answered():
    async def main():
        async with Client(**SLOW) as client:
            asking, talk = await client.begin(), await client.talk()
            client.drain.leave()
            # Other ingresses are there, and who still comes to this one is no worse off.
            assert (await client.http.get("/ready")).status_code == 200
            answer = await client.http.post(PATH, json=BODY)
            assert np.array_equal(pcm(answer.content), samples())
            await talk.send("input.text", text="this is so.")
            await talk.send("input.done")
            await talk.send("input.text", text="Another one.")
            error = await talk.until("error")
            assert error["error"]["code"] == "server_draining"
            assert "connect again" in error["error"]["message"]
            done = await talk.until("session.done")
            assert done["total_sentences"] == 2
            assert await closed(talk) == RESTART
            assert np.array_equal(pcm(b"".join(await asking)), samples())

    asyncio.run(main())


def test_an_utterance_outlasts_the_server_that_stops_listening(monkeypatch):
    """As that of a replica does, some seconds after Serve has taken it out of service."""
    monkeypatch.setattr(AutoWebSocketsProtocol, "shutdown", AutoWebSocketsProtocol.shutdown)
    sockets.outlast()

    async def main():
        async with Client(**SLOW) as client:
            asking, talk = await client.begin(), await client.talk()
            client.stopping.set()
            await until(lambda: is_refused(client.url))
            client.drain.leave()
            await talk.send("input.text", text="this is so.")
            await talk.send("input.done")
            done = await talk.until("session.done")
            assert done["total_sentences"] == 2
            assert await closed(talk) == RESTART
            assert np.array_equal(pcm(b"".join(await asking)), samples())

    asyncio.run(main())


def is_refused(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


def test_a_server_that_ends_says_so_to_who_waits_on_an_ingress_that_leaves():
    async def main():
        async with Client(**SLOW) as client:
            talk = await client.talk()
            client.drain.leave()
            client.drain.begin()
            await talk.send("input.done")
            await talk.until("session.done")
            assert await closed(talk) == GOING_AWAY

    asyncio.run(main())


def test_a_response_is_completed_and_then_the_session_closed():
    async def main():
        url = "/v1/realtime?model=gpt-realtime"
        async with (
            Client(**SLOW) as client,
            websockets.connect(address(client.url, url)) as socket,
        ):
            content = [{"type": "input_text", "text": "Good morning."}]
            item = {"type": "message", "role": "user", "content": content}
            create = {"type": "response.create", "response": {"input": [item]}}
            await socket.send(json.dumps(create))
            seen = []
            async for raw in socket:
                seen.append(json.loads(raw))
                if seen[-1]["type"] == "response.output_audio.delta":
                    client.drain.begin()
            assert seen[-1]["type"] == "response.done"
            assert seen[-1]["response"]["status"] == "completed"
            assert socket.close_code == GOING_AWAY

    asyncio.run(main())


def test_what_is_cut_is_told_so():
    async def main():
        async with Client(**ENDLESS) as client:
            raw, events = await client.begin(), await client.begin(stream_format="sse")
            talk = await client.talk()
            client.drain.begin()
            client.drain.cut()
            assert (await raw)[-1] is None  # no end of the body, so that nobody takes it for whole
            said = b"".join(piece for piece in await events if piece is not None)
            last = json.loads(said.decode().strip().splitlines()[-1].removeprefix("data: "))
            assert (last["type"], last["error"]["code"]) == ("error", "server_draining")
            done = await talk.until("session.done")
            assert done["error"] is True
            assert talk.of("error")[-1]["error"]["code"] == "server_draining"
            assert await closed(talk) == GOING_AWAY

    asyncio.run(main())


def test_a_session_that_waits_for_text_is_cut_as_well():
    async def main():
        async with Client() as client:
            talk = await client.talk()
            await talk.until("audio.done")
            client.drain.begin()
            await asyncio.sleep(0.1)
            assert client.drain.num_open == 1
            client.drain.cut()
            error = await talk.until("error")
            assert error["error"]["code"] == "server_draining"
            assert await closed(talk) == GOING_AWAY

    asyncio.run(main())


def test_a_batch_and_a_whole_file_are_answered_until_they_are_cut():
    async def main():
        async with Client(**ENDLESS) as client:
            batch = {"items": [{"input": "Hello."}], "voice": "alloy"}
            asking = [
                asyncio.create_task(client.http.post(path, json=body))
                for path, body in ((PATH, {**BODY, "stream": False}), (f"{PATH}/batch", batch))
            ]
            await until(lambda: client.service.talker.running == 2)
            client.drain.begin()
            await asyncio.sleep(0.1)
            assert client.drain.num_open == 2
            client.drain.cut()
            file, items = await asyncio.gather(*asking)
            assert (file.status_code, file.json()["error"]["code"]) == (503, "server_draining")
            assert "server_draining" in items.text

    asyncio.run(main())


@pytest.mark.parametrize("alone", [False, True])
def test_a_long_text_stops_where_it_is_and_another_server_goes_on(tmp_path, alone):
    async def main():
        first, second = Reading(tmp_path, frame_s=0.02), Reading(tmp_path)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(first.app.router.lifespan_context(first.app))
            http = await stack.enter_async_context(first.http())
            job_id = await created(http)
            while (await shown(http, job_id))["progress"]["units_done"] < 2:
                await asyncio.sleep(0.02)
            if alone:
                first.drain.leave()
            else:
                first.drain.begin()
                refused = await http.post(LONG, json={"input": "Another one.", "voice": "alloy"})
                assert refused.status_code == 503
            await until(lambda: first.idle)
            made = len(first.made)
            progress = (await shown(http, job_id))["progress"]
            assert 2 <= progress["units_done"] <= made < progress["units_total"]
            # It is not counted for open, however long it lasts.
            assert first.drain.num_open == 0
            await stack.enter_async_context(second.app.router.lifespan_context(second.app))
            http = await stack.enter_async_context(second.http())
            await in_state(http, job_id, "completed")
            assert len(first.made) == made
            # What was looked at may be a unit behind what is kept.
            total = progress["units_total"]
            assert total - made <= len(second.made) <= total - progress["units_done"]

    asyncio.run(main())
