"""What a client that leaves, or a server that cancels, leaves behind."""

import asyncio

import httpx2
import pytest

from serve_app import metrics
from tests.integration.http.service import Service, served, until


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_before_the_first_audio_frees_every_stage(stream):
    async def main():
        service = Service(frame_s=30.0)
        async with served(service.app) as url:
            async with httpx2.AsyncClient(timeout=0.2) as http:
                body = {"input": "Hello.", "stream": stream}
                with pytest.raises(httpx2.ReadTimeout):
                    await http.post(f"{url}/v1/audio/speech", json=body)
            await until(lambda: service.idle)
        assert len(service.talker.requests) == 1
        assert service.counts == {(metrics.REQUESTS.name, "499"): 1}

    asyncio.run(main())


def test_leaving_in_the_middle_frees_every_stage():
    async def main():
        service = Service(num_frames=100_000, frame_s=0.001)
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            request = http.stream("POST", f"{url}/v1/audio/speech", json={"input": "Hello."})
            async with request as response:
                await anext(response.aiter_bytes())
                assert not service.idle
            await until(lambda: service.idle)
            await until(lambda: (metrics.STREAMS_ABORTED.name, "client_gone") in service.counts)

    asyncio.run(main())


@pytest.mark.parametrize("num_pieces", [0, 2])
def test_a_server_that_cancels_the_request_frees_every_stage(num_pieces):
    async def main():
        service = Service(num_frames=100_000, frame_s=30.0 if num_pieces == 0 else 0.001)
        sent = []
        body = [{"type": "http.request", "body": b'{"input": "Hello."}', "more_body": False}]

        async def receive():
            if body:
                return body.pop()
            return await asyncio.get_running_loop().create_future()

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": "/v1/audio/speech",
            "raw_path": b"/v1/audio/speech",
            "query_string": b"",
            "headers": [],
            "root_path": "",
        }
        task = asyncio.create_task(service.app(scope, receive, send))
        await until(lambda: not service.idle and len(sent) >= num_pieces)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert service.idle

    asyncio.run(main())
