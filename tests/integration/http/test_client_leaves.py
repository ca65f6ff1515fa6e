"""What a client that leaves, or a server that cancels, leaves behind."""

import asyncio
import json
import logging

import httpx2
import pytest

from serve_app import metrics
from serve_app.config import IngressConfig, JobsConfig
from tests.integration.http.service import SEED, Service, served
from tests.waiting import until


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


FORM = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/audio/speech", "application/json"),
        ("/v1/audio/speech/batch", "application/json"),
        ("/v1/audio/speech/long", "application/json"),
        ("/v1/audio/speech/upload", FORM),
        ("/v1/audio/voices", FORM),
        ("/v1/audio/voices", "application/json"),
    ],
)
def test_leaving_in_the_middle_of_the_body_is_no_failure_of_the_server(
    tmp_path, caplog, path, kind
):
    async def main():
        config = IngressConfig(jobs=JobsConfig(directory=str(tmp_path)))
        service = Service(config=config)
        body = [
            {
                "type": "http.request",
                "body": b"--x\r\n" if kind == FORM else b"{",
                "more_body": True,
            },
            {"type": "http.disconnect"},
        ]

        async def receive():
            return body.pop(0)

        async def send(message):
            del message

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", kind.encode())],
            "root_path": "",
        }
        await service.app(scope, receive, send)
        assert (metrics.REQUESTS.name, "500") not in service.counts

    caplog.set_level(logging.INFO)
    asyncio.run(main())
    (line,) = [found.message for found in caplog.records if found.name == "serve_app.requests"]
    assert " status=499 " in line
    assert "error=" not in line


# The client reads slowly

LONG = 4000  # frames, more than the buffers of a socket hold


async def _reads_nothing(url, **fields):
    """The connection of a client that has sent its request."""
    host, port = url.removeprefix("http://").split(":")
    # A small window, so that the server notices soon.
    reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 12)
    raw = json.dumps({"input": "Hello.", "response_format": "pcm", **fields}).encode()
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: test\r\nContent-Length: {len(raw)}\r\n\r\n"
    writer.write(head.encode() + raw)
    await writer.drain()
    return reader, writer


def test_the_stages_are_free_when_the_audio_is_made_though_nobody_reads_it():
    async def main():
        config = IngressConfig(read_ahead_s=1000.0)
        service = Service(num_frames=LONG, chunk_frames=(50,), config=config)
        async with served(service.app) as url:
            reader, writer = await _reads_nothing(url, seed=SEED)
            await until(lambda: service.talker.requests and service.idle)
            assert service.counts == {(metrics.REQUESTS.name, "200"): 1}
            body = b""
            while not body.endswith(b"0\r\n\r\n"):
                body += await reader.read(1 << 20)
            assert len(body) > LONG * 3840
            writer.close()
            await until(lambda: (metrics.FINISHED.name, "stop") in service.counts)

    asyncio.run(main())


def test_no_more_is_made_ahead_than_is_allowed():
    async def main():
        made = 0

        class Counting(Service):
            async def speak(self, request):
                nonlocal made
                async for chunk in super().speak(request):
                    made += len(chunk.samples)
                    yield chunk

        config = IngressConfig(read_ahead_s=10.0)
        service = Counting(num_frames=100_000, chunk_frames=(50,), config=config)
        async with served(service.app) as url:
            _, writer = await _reads_nothing(url)
            before = -1
            while made != before:
                before = made
                await asyncio.sleep(0.3)
            # Ten seconds, and what the sockets hold.
            assert 10 * 24000 <= made < 400 * 24000
            assert not service.idle
            writer.close()
            await until(lambda: service.idle)

    asyncio.run(main())


def test_a_client_that_reads_nothing_for_too_long_is_cut_off():
    async def main():
        config = IngressConfig(read_ahead_s=10.0, reader_timeout_s=0.3)
        service = Service(num_frames=100_000, chunk_frames=(50,), config=config)
        async with served(service.app) as url:
            _, writer = await _reads_nothing(url)
            await until(lambda: (metrics.STREAMS_ABORTED.name, "client_stalled") in service.counts)
            assert service.idle
            writer.close()

    asyncio.run(main())
