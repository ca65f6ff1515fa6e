"""Who is let in, with what, from where: the whole application behind its layers."""

import asyncio
import contextlib
import json
import logging

import openai
import pytest
import websockets
from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from serve_app.config import AccessConfig, IngressConfig
from serve_app.http.access.layers import add_layers
from serve_app.http.draining.drain import Drain
from serve_app.http.health import Status
from serve_app.http.observe.tracing import NoTracer
from serve_app.keys.digest import digest_of
from serve_app.keys.key_file import Key, write
from serve_app.metrics import NoRecorder
from tests.integration.http.service import Service, create, served
from tests.integration.http.voices.recordings import VOICES, WAV, cloning
from tests.waiting import until

SECRET = "sk-tts-of-a-test"
BODY = {"input": "Hello.", "response_format": "pcm"}
PATH = "/v1/audio/speech"


def config_of(folder, observe=None, **fields):
    """A configuration that asks for the key SECRET; `fields` of it are limits of the key."""
    limits = {"requests_per_minute", "concurrent", "priority"} & fields.keys()
    key = Key(name="tester", hash=digest_of(SECRET), **{name: fields.pop(name) for name in limits})
    write(folder / "keys.yaml", [key])
    access = AccessConfig(keys_file=str(folder / "keys.yaml"), **fields)
    return IngressConfig(access=access, **({"observe": observe} if observe else {}))


def locked(folder, **fields):
    return Service(config=config_of(folder, **fields))


def answers(service, *requests):
    """The responses to requests (method, path, headers), one after the other."""

    async def main():
        async with service.http() as http:
            return [
                await http.request(method, path, headers=headers, json=BODY)
                for method, path, headers in requests
            ]

    return asyncio.run(main())


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {SECRET}"},
        {"Authorization": f"bearer  {SECRET} "},
        {"api-key": SECRET},
        {"X-Api-Key": SECRET},
        {"X-Vapi-Secret": SECRET},
        {"Authorization": "Basic of-a-proxy", "x-api-key": SECRET},
    ],
)
def test_a_key_opens_wherever_clients_put_it(tmp_path, headers):
    looked = []
    service = Service(config=config_of(tmp_path, priority=3), look=looked.append)
    (response,) = answers(service, ("POST", PATH, headers))
    assert response.status_code == 200
    assert service.talker.requests[0].priority == 3
    assert looked == [3]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer undefined"},
        {"Authorization": f"Bearer {SECRET}x"},
        {"Authorization": SECRET},
        {"Authorization": f"Basic {SECRET}"},
        {"api-key": "null"},
        {"x-api-key": "\u00fc".encode("latin-1")},
    ],
)
def test_without_a_valid_key_there_is_an_error_that_openais_client_reads(tmp_path, headers):
    service = locked(tmp_path)
    (response,) = answers(service, ("POST", PATH, headers))
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert error.keys() == {"message", "type", "param", "code"}
    assert service.talker.requests == []


def test_openais_client_raises_its_own_error(tmp_path):
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
        asyncio.run(create(locked(tmp_path), extra_headers={"Authorization": "Bearer wrong"}))


def test_without_keys_anything_is_let_in():
    service = Service()
    for value in ("Bearer", "Bearer ", "Bearer undefined", "Bearer any", "nonsense"):
        (response,) = answers(service, ("POST", PATH, {"Authorization": value}))
        assert response.status_code == 200


@pytest.mark.parametrize("public", [True, False])
def test_lists_and_signs_of_life_need_no_key(tmp_path, public):
    service = locked(tmp_path, public_lists=public)
    lists = ["/v1/models", "/v1/models/tts-1", "/v1/audio/models", "/v1/audio/voices"]
    life = ["/", "/health", "/ready", "/livez", "/version", "/docs", "/openapi.json", "/web/"]
    got = answers(service, *(("GET", path, {}) for path in (*lists, *life)))
    statuses = [response.status_code for response in got]
    assert statuses[: len(lists)] == [200 if public else 401] * len(lists)
    assert set(statuses[len(lists) :]) == {200}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/audio/speech"),
        ("POST", "/v1/audio/speech/batch"),
        ("POST", "/v1/audio/voices"),
        ("DELETE", "/v1/audio/voices/x"),
        ("POST", "/health"),
        ("GET", "/nothing"),
        ("GET", "/v1//models"),
        ("GET", "/web/../v1/audio/speech/long"),
        ("GET", "/v1/audio/speech/long"),
    ],
)
def test_everything_else_needs_one(tmp_path, method, path):
    (response,) = answers(locked(tmp_path), (method, path, {}))
    assert response.status_code == 401


def test_a_key_in_the_file_works_at_once_and_a_removed_one_no_more(tmp_path):
    service = locked(tmp_path)
    new = {"x-api-key": "new"}
    write(tmp_path / "keys.yaml", [Key(name="new", hash=digest_of("new"))])

    async def main():
        async with service.http() as http:

            async def is_let_in(headers):
                response = await http.post(PATH, json=BODY, headers=headers)
                return response.status_code == 200

            async with asyncio.timeout(10):
                while not await is_let_in(new):
                    await asyncio.sleep(0.1)
            assert not await is_let_in({"x-api-key": SECRET})

    asyncio.run(main())


def test_no_log_has_a_key(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    key = {"Authorization": f"Bearer {SECRET}"}
    wrong = {"api-key": "sk-somebody-else"}
    answers(locked(tmp_path), ("POST", PATH, key), ("POST", PATH, wrong))
    assert SECRET not in caplog.text
    assert "sk-somebody" not in caplog.text


def test_a_rate_is_told_in_headers_and_then_refused(tmp_path):
    service = locked(tmp_path, requests_per_minute=2)
    call = ("POST", PATH, {"api-key": SECRET})
    first, second, third, listed = answers(
        service, call, call, call, ("GET", "/v1/models", {"api-key": SECRET})
    )
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    assert third.status_code == 429
    assert third.json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(third.headers["retry-after"]) <= 30
    assert 0 < int(third.headers["retry-after-ms"]) <= 30_000
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert listed.status_code == 200


def test_a_key_has_so_many_requests_at_once_and_more_when_one_is_over(tmp_path):
    async def main():
        service = locked(tmp_path, concurrent=1)
        gate = asyncio.Event()
        service.talker._sleep = lambda _: gate.wait()
        async with service.http() as http:
            call = {"json": BODY, "headers": {"api-key": SECRET}}
            first = asyncio.create_task(http.post(PATH, **call))
            await until(lambda: service.talker.running == 1)
            refused = await http.post(PATH, **call)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            gate.set()
            assert (await first).status_code == 200
            assert (await http.post(PATH, **call)).status_code == 200

    asyncio.run(main())


def test_other_origins_are_let_in_only_by_configuration(tmp_path):
    page = {"Origin": "https://page.example"}
    preflight = {**page, "Access-Control-Request-Method": "POST"}
    preflight["Access-Control-Request-Headers"] = "authorization,content-type"
    closed = answers(Service(), ("OPTIONS", PATH, preflight), ("POST", PATH, page))
    assert all("access-control-allow-origin" not in response.headers for response in closed)
    service = locked(tmp_path, cors_origins=("https://page.example",))
    asked, refused, other = answers(
        service,
        ("OPTIONS", PATH, preflight),
        ("POST", PATH, page),
        ("OPTIONS", PATH, {**preflight, "Origin": "https://evil.example"}),
    )
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == "https://page.example"
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    # A page has to be able to read why it is refused.
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://page.example"
    assert "x-request-id" in refused.headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in refused.headers
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    ("origins", "headers", "statuses"),
    [
        ((), {"Origin": "https://evil.example"}, [403, 403, 403]),
        (("https://evil.example",), {"Origin": "https://evil.example"}, [200, 200, 404]),
        ((), {"Origin": "http://test"}, [200, 200, 404]),
        ((), {}, [200, 200, 404]),
    ],
)
def test_without_keys_pages_of_others_only_look(tmp_path, origins, headers, statuses):
    service = cloning(tmp_path, access={"cors_origins": origins})
    plain = {"Content-Type": "text/plain"}
    body = json.dumps({**BODY, "voice": "Mine"})
    form = {"data": {"name": "Mine"}, "files": {"audio_sample": ("a.wav", WAV, "audio/wav")}}

    async def main():
        async with service.http() as http:
            voices = (await http.get(VOICES)).json()["voices"]
            sent = [
                await http.post(VOICES, headers=headers, **form),
                # As a form does that says it is text.
                await http.post(PATH, headers={**headers, **plain}, content=body),
                await http.delete(f"{VOICES}/nobody", headers=headers),
            ]
            read = [await http.get(path, headers=headers) for path in (VOICES, "/web/", "/livez")]
            assert [answer.status_code for answer in read] == [200] * 3
            return sent, len(read[0].json()["voices"]) - len(voices)

    sent, added = asyncio.run(main())
    assert [answer.status_code for answer in sent] == statuses
    assert added == (statuses[0] == 200)
    if statuses[0] == 403:
        assert not service.talker.requests
        for answer in sent:
            error = answer.json()["error"]
            assert (error["type"], error["code"]) == ("permission_error", "not_allowed")
            assert "cors_origins" in error["message"]


def test_with_keys_a_page_of_others_has_to_know_one(tmp_path):
    page = {"Origin": "https://page.example"}
    service = locked(tmp_path)
    without, with_key = answers(
        service, ("POST", PATH, page), ("POST", PATH, {**page, "Authorization": f"Bearer {SECRET}"})
    )
    assert (without.status_code, with_key.status_code) == (401, 200)


async def exchanged(url, rest):
    """What comes back for the beginning of a request, which never goes on."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {PATH} HTTP/1.1\r\nHost: test\r\n{rest}".encode())
    answer = await asyncio.wait_for(reader.read(4096), 10)
    writer.close()
    return answer


def test_a_body_that_says_it_is_too_large_is_not_read():
    service = Service(config=IngressConfig(access=AccessConfig(max_body_bytes=1000)))

    async def main():
        sent = 0

        async def body():
            nonlocal sent
            while True:
                sent += 1
                yield b" " * 100

        async with served(service.app) as url:
            answer = await exchanged(url, "Content-Length: 1001\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"payload_too_large" in answer
        async with service.http() as http:
            response = await http.post(PATH, content=body())
            assert response.status_code == 413
        assert sent <= 11

    asyncio.run(main())


def test_a_body_that_never_ends_is_given_up():
    service = Service(config=IngressConfig(access=AccessConfig(body_timeout_s=0.2)))

    async def main():
        async with served(service.app) as url:
            answer = await exchanged(url, "Content-Length: 50\r\n\r\n{")
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"type":"timeout_error"' in answer
        assert b"connection: close" in answer.lower()

    asyncio.run(main())


def echo(config):
    """An application with a WebSocket that sends back what it gets."""
    app = FastAPI()

    @app.websocket("/v1/realtime")
    async def repeat(socket: WebSocket):
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await socket.send_text(await socket.receive_text())

    async def status():
        return Status("healthy")

    add_layers(app, config, status, NoRecorder(), NoTracer(), Drain())
    return app


@pytest.mark.parametrize(
    ("options", "subprotocol"),
    [
        ({"additional_headers": {"Authorization": f"Bearer {SECRET}"}}, None),
        ({"subprotocols": ["realtime", f"openai-insecure-api-key.{SECRET}"]}, "realtime"),
    ],
)
def test_a_websocket_brings_its_key_in_a_header_or_as_a_subprotocol(tmp_path, options, subprotocol):
    async def main():
        async with served(echo(config_of(tmp_path, concurrent=1))) as url:
            address = f"{url.replace('http', 'ws')}/v1/realtime"
            async with websockets.connect(address, **options) as socket:
                assert socket.subprotocol == subprotocol
                await socket.send("hello")
                assert await socket.recv() == "hello"
                with pytest.raises(websockets.InvalidStatus) as caught:
                    await websockets.connect(address, **options)
                assert caught.value.response.status_code == 429
            for refused in ({}, {"subprotocols": ["realtime", "openai-insecure-api-key.x"]}):
                with pytest.raises(websockets.InvalidStatus) as caught:
                    await websockets.connect(address, **refused)
                assert caught.value.response.status_code == 401
                assert b"invalid_api_key" in caught.value.response.body

    asyncio.run(main())


def test_a_websocket_is_not_for_pages_of_others_nor_for_messages_without_bound():
    access = AccessConfig(max_frame_bytes=100, cors_origins=("https://page.example",))

    async def main():
        async with served(echo(IngressConfig(access=access))) as url:
            address = f"{url.replace('http', 'ws')}/v1/realtime"
            cases = ((url, "x"), ("https://page.example", "\N{SNOWMAN}" * 3))
            for origin, text in cases:
                async with websockets.connect(address, origin=origin) as socket:
                    size = len(text.encode())
                    await socket.send(text * (100 // size))
                    assert await socket.recv() == text * (100 // size)
                    await socket.send(text * (100 // size + 1))
                    with pytest.raises(websockets.ConnectionClosedError) as closed:
                        await socket.recv()
                    assert closed.value.rcvd.code == 1009
            for origin in ("https://evil.example", "http://["):
                with pytest.raises(websockets.InvalidStatus) as caught:
                    await websockets.connect(address, origin=origin)
                assert caught.value.response.status_code == 403

    asyncio.run(main())
