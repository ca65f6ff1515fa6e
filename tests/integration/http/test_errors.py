"""What is refused and what fails, seen through the real OpenAI client."""

import asyncio
import json
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest
import websockets

from serve_app import metrics
from serve_app.config import IngressConfig, JobsConfig
from serve_app.errors import Full, Overloaded, StageFailed, StageUnavailable
from serve_app.types import PcmChunk
from tests.integration.http.service import SEED, Service, create, samples, served

BAD_FIELDS = [
    ({"model": "gpt-9"}, 404, "model", "model_not_found", "gpt-9"),
    ({"model": 5}, 400, "model", None, "string"),
    ({"input": None}, 400, "input", None, "Missing required parameter: 'input'"),
    ({"input": ["Hello."]}, 400, "input", None, "string"),
    ({"input": " \n "}, 400, "input", "empty_string", "empty"),
    ({"input": "x" * 32769}, 400, "input", "string_above_max_length", "32768"),
    ({"input": "Hi <|im_end|> there"}, 400, "input", None, "<|im_end|>"),
    ({"input": "Hi <tts_pad>"}, 400, "input", None, "<tts_pad>"),
    ({"instructions": "<|im_start|>"}, 400, "instructions", None, "<|im_start|>"),
    ({"instructions": "x" * 4097}, 400, "instructions", "string_above_max_length", "4096"),
    ({"voice": "nobody"}, 400, "voice", "voice_not_found", "vivian, serena, ryan"),
    ({"voice": 3}, 400, "voice", None, "string"),
    ({"voice": {"id": 3}}, 400, "voice", None, "string"),
    ({"voice": {"name": "vivian"}}, 400, "voice", None, "an object with 'id'"),
    ({"language": "klingon"}, 400, "language", None, "chinese, english"),
    ({"language": "fr"}, 400, "language", None, "german"),
    ({"response_format": "doc"}, 400, "response_format", "unsupported_format", "mp3, opus"),
    ({"stream_format": "ws"}, 400, "stream_format", "unsupported_format", "audio, sse"),
    ({"speed": 4.5}, 400, "speed", None, "4"),
    ({"speed": "fast"}, 400, "speed", None, "number"),
    ({"sample_rate": 11000}, 400, "sample_rate", None, "24000"),
    ({"stream": "yes"}, 400, "stream", None, "boolean"),
    ({"seed": -2}, 400, "seed", None, "greater than or equal to 0"),
    ({"seed": 1 << 63}, 400, "seed", None, "less than or equal"),
    ({"seed": 1.5}, 400, "seed", None, "integer"),
    ({"temperature": -0.1}, 400, "temperature", None, "greater than or equal to 0"),
    ({"temperature": 2.1}, 400, "temperature", None, "less than or equal to 2"),
    ({"temperature": 1e-9}, 400, "temperature", None, "at least 0.01"),
    ({"temperature": True}, 400, "temperature", None, "number"),
    ({"subtalker_temperature": 9}, 400, "subtalker_temperature", None, "less than or equal"),
    ({"top_k": -1}, 400, "top_k", None, "greater than or equal"),
    ({"top_p": 0}, 400, "top_p", None, "greater than 0"),
    ({"top_p": 1.01}, 400, "top_p", None, "less than or equal to 1"),
    ({"repetition_penalty": 0}, 400, "repetition_penalty", None, "greater than or equal"),
    ({"max_new_tokens": 0}, 400, "max_new_tokens", None, "greater than or equal to 1"),
    ({"max_new_tokens": 257}, 400, "max_new_tokens", None, "256"),
    ({"max_new_tokens": 2, "min_new_tokens": 3}, 400, "min_new_tokens", None, "limit of 2"),
    ({"task_type": "VoiceDesign"}, 400, "task_type", None, "CustomVoice"),
    ({"ref_audio": "data:"}, 400, "ref_audio", "voice_not_supported", "clone"),
]


@pytest.mark.parametrize(
    ("fields", "status", "param", "code", "message"), BAD_FIELDS, ids=lambda value: str(value)[:40]
)
def test_a_bad_field_is_named_and_nothing_is_synthesized(fields, status, param, code, message):
    service = Service()
    kind = openai.NotFoundError if status == 404 else openai.BadRequestError
    with pytest.raises(kind) as caught:
        asyncio.run(create(service, extra_body=fields))
    error = caught.value
    assert error.status_code == status
    assert error.type == "invalid_request_error"
    assert error.param == param
    assert error.code == code
    assert message in error.message
    assert service.talker.requests == []
    assert service.counts == {(metrics.REQUESTS.name, str(status)): 1}


@pytest.mark.parametrize(
    ("raw", "status", "param"),
    [
        (b"", 400, None),
        (b"{", 400, None),
        (b"[]", 400, None),
        (b"\xff", 400, None),
        (b"[" * 100_000, 400, None),
        (b"{}", 400, "input"),
        (b'{"input": "a", "temperature": NaN}', 400, "temperature"),
        (b'{"input": "a", "top_p": Infinity}', 400, "top_p"),
        (b'{"input": "a \\ud800"}', 400, "input"),
        (b'{"input": "a", "seed": ' + b"9" * 5000 + b"}", 400, None),
        (b'{"input": "' + b"a" * (1 << 20) + b'"}', 413, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_body_gets_an_error_of_the_same_shape(raw, status, param):
    async def main():
        service = Service()
        async with service.http() as http:
            response = await http.post("/v1/audio/speech", content=raw)
        assert response.status_code == status
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert error["message"]
        assert service.talker.requests == []

    asyncio.run(main())


def test_the_body_limit_counts_what_comes_and_stops_reading():
    async def main():
        received = 0

        async def endless():
            nonlocal received
            while True:
                received += 1 << 16
                yield b" " * (1 << 16)

        async with Service().http() as http:
            response = await http.post("/v1/audio/speech", content=endless())
        assert response.status_code == 413
        assert received <= (1 << 20) + (1 << 16)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/audio/speech", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/gpt-9", 404, "model_not_found"),
        ("GET", "/v1/audio/voices?legacy=maybe", 400, None),
    ],
)
def test_errors_of_other_paths_have_the_same_shape(method, path, status, code):
    async def main():
        async with Service().http() as http:
            response = await http.request(method, path)
        assert response.status_code == status
        error = response.json()["error"]
        assert error["type"] == "invalid_request_error"
        assert error["code"] == code
        assert error["message"]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "kind", "status", "type_"),
    [
        (Overloaded("All seats are taken.", 2.0), openai.RateLimitError, 429, "rate_limit_error"),
        (StageUnavailable("starting"), openai.InternalServerError, 503, "server_error"),
        (StageFailed("CUDA at /root"), openai.InternalServerError, 500, "server_error"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_before_the_first_audio_is_a_json_error(error, kind, status, type_, stream):
    service = Service(fail_at=0, error=error)
    with pytest.raises(kind) as caught:
        asyncio.run(create(service, extra_body={"stream": stream}))
    assert caught.value.status_code == status
    assert caught.value.type == type_
    assert "CUDA" not in caught.value.message
    headers = caught.value.response.headers
    assert headers.get("retry-after") == {429: "2", 503: "1"}.get(status)
    assert headers.get("retry-after-ms") == {429: "2000", 503: "1000"}.get(status)
    assert service.idle


def test_an_unforeseen_failure_tells_nothing_of_the_inside():
    class Broken(Service):
        async def speak(self, request):
            raise KeyError("/root/secret")
            yield

    with pytest.raises(openai.InternalServerError) as caught:
        asyncio.run(create(Broken()))
    assert "secret" not in caught.value.message


def test_a_whole_file_that_breaks_halfway_is_a_json_error():
    service = Service(fail_at=5, error=StageFailed("broken"))
    with pytest.raises(openai.InternalServerError):
        asyncio.run(create(service, extra_body={"stream": False}))
    assert service.idle


@pytest.mark.parametrize("num_samples", [0, 10])
@pytest.mark.parametrize("stream", [True, False])
def test_audio_without_samples_or_without_an_end_is_a_failure(num_samples, stream):
    class Odd(Service):
        async def speak(self, request):
            finish = "stop" if num_samples == 0 else None
            codes = np.zeros((0, 4), np.int64)
            yield PcmChunk(np.zeros(num_samples, np.int16), 0, codes, finish)

    async def main():
        service = Odd()
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            body = {"input": "Hello.", "stream": stream, "response_format": "pcm"}
            if num_samples and stream:
                with pytest.raises(httpx2.RemoteProtocolError):
                    await http.post(f"{url}/v1/audio/speech", json=body)
            else:
                assert (await http.post(f"{url}/v1/audio/speech", json=body)).status_code == 500

    asyncio.run(main())


@pytest.mark.parametrize("error", [StageFailed("broken"), StageUnavailable("gone")])
def test_a_failure_after_the_first_audio_cuts_the_body(error):
    async def main():
        service = Service(fail_at=5, error=error)
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            client = service.client(http).with_options(base_url=f"{url}/v1")
            call = {"model": "tts-1", "voice": "alloy", "input": "Hello."}
            with pytest.raises(openai.APIConnectionError):
                await client.audio.speech.create(**call)
            received = b""

            async def listen():
                nonlocal received
                async with client.audio.speech.with_streaming_response.create(
                    **call, response_format="pcm", extra_body={"seed": SEED}
                ) as response:
                    async for piece in response.iter_bytes():
                        received += piece

            with pytest.raises(httpx2.RemoteProtocolError):
                await listen()
        assert received == samples(3).tobytes()
        assert service.idle
        reason = "stage_failed" if isinstance(error, StageFailed) else "stage_unavailable"
        assert service.counts[metrics.STREAMS_ABORTED.name, reason] == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    "field", ["voice", "model", "language", "response_format", "stream_format", "task_type"]
)
def test_half_a_surrogate_pair_is_quoted_in_an_error_like_anything_else(field):
    async def main():
        service = Service()
        raw = b'{"input": "Hello.", "%s": "\\ud800"}' % field.encode()
        async with service.http() as http:
            response = await http.post("/v1/audio/speech", content=raw)
        assert response.status_code == (404 if field == "model" else 400)
        assert response.content.isascii()
        assert "\ud800" in response.json()["error"]["message"]
        assert service.counts == {(metrics.REQUESTS.name, str(response.status_code)): 1}

    asyncio.run(main())


def test_a_failure_while_an_error_is_written_is_counted_and_answered():
    service = Service(fail_at=0, error=Overloaded("full", float("nan"), "talker"))

    async def main():
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            response = await http.post(f"{url}/v1/audio/speech", json={"input": "Hello."})
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"
        assert service.counts == {
            (metrics.REQUESTS.name, "500"): 1,
            (metrics.REFUSED_BY_STAGES.name, service.catalog.cards[0].name): 1,
        }

    asyncio.run(main())


def test_the_control_strings_are_the_ones_of_the_tokenizer():
    service = Service()
    asyncio.run(create(service, input="Say <|abc|> aloud."))
    with pytest.raises(openai.BadRequestError, match="<think>"):
        asyncio.run(create(service, input="Say <think> aloud."))
    assert len(service.talker.requests) == 1


def test_who_is_refused_for_load_is_answered_before_the_body_is_read() -> None:
    def full(priority: int) -> None:
        raise Overloaded("64 requests are running", 2.5)

    async def main() -> None:
        service = Service(look=full)
        reader, writer = None, None
        async with served(service.app) as url:
            host, port = url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            head = "POST /v1/audio/speech HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n"
            writer.write(head.encode())  # and nothing of the body
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            writer.close()
        assert answer.startswith(b"http/1.1 429")
        assert b"retry-after: 3\r\n" in answer
        assert service.counts[metrics.REQUESTS.name, "429"] == 1
        assert not service.talker.requests

    asyncio.run(main())


@pytest.mark.parametrize("fronted", [True, False])
@pytest.mark.parametrize("error", [Full("64 requests are running"), Overloaded("of your priority")])
def test_only_a_proxy_that_refuses_by_itself_hears_that_nobody_can_be_let_in(
    error: Overloaded, fronted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(priority: int) -> None:
        raise error

    async def main() -> None:
        monkeypatch.setenv("TTS_PROXY_REFUSES", "1" if fronted else "")
        service = Service(look=look)
        async with service.http() as http:
            answer = await http.post(
                "/v1/audio/speech", json={"input": "a"}, headers={"x-tts-refused": "40"}
            )
        assert answer.status_code == 429
        assert ("x-tts-full" in answer.headers) == (fronted and isinstance(error, Full))
        assert service.sums.get(metrics.REFUSED_AT_PROXY.name, 0) == (40 if fronted else 0)

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v1/audio/speech/stream", "/v1/realtime?model=tts-1"])
def test_a_session_is_refused_for_load_before_it_begins(path: str) -> None:
    def full(priority: int) -> None:
        raise Overloaded("64 requests are running", 2.5)

    async def main() -> None:
        async with served(Service(look=full).app) as url:
            with pytest.raises(websockets.InvalidStatus) as caught:
                await websockets.connect(url.replace("http", "ws", 1) + path)
        response = caught.value.response
        assert (response.status_code, response.headers["retry-after"]) == (429, "3")
        assert json.loads(response.body)["error"]["code"] == "server_overloaded"

    asyncio.run(main())


def test_a_batch_is_refused_unread_where_many_texts_wait_already() -> None:
    class Stuck(Service):
        async def speak(self, request):
            await asyncio.Event().wait()
            yield

    async def main() -> None:
        service = Stuck(config=IngressConfig(background_streams=1))
        async with service.http() as http:
            path = "/v1/audio/speech/batch"
            # One that is made and as many as may wait.
            waiting = [
                asyncio.create_task(http.post(path, json={"items": [{"input": "Hello."}]}))
                for _ in range(17)
            ]
            while (answer := await http.post(path, content=b"not JSON")).status_code == 400:
                await asyncio.sleep(0.01)
            assert answer.status_code == 429
            assert answer.headers["retry-after"] == "10"
            assert service.counts[metrics.REQUESTS.name, "429"] == 1
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    asyncio.run(main())


def test_a_long_text_is_refused_unread_where_there_are_as_many_as_there_may_be(
    tmp_path: Path,
) -> None:
    jobs = JobsConfig(max_jobs=0, directory=str(tmp_path))

    async def main() -> None:
        async with Service(config=IngressConfig(jobs=jobs)).http() as http:
            answer = await http.post("/v1/audio/speech/long", content=b"not JSON")
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "60")

    asyncio.run(main())
