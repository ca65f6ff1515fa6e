"""The HTTP server around fakes, seen through the real OpenAI client."""

import asyncio
import io
import json
import pickle
import re
import wave
from contextlib import asynccontextmanager

import httpx2
import numpy as np
import openai
import pytest
import uvicorn
from ray.exceptions import ActorDiedError

from serve_app import metrics
from serve_app.audio.formats import AudioFormat, encode_file
from serve_app.audio.wav import wav_header
from serve_app.config import IngressConfig
from serve_app.deployments.calls import through
from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_card, fake_codes
from serve_app.http.app import build_api
from serve_app.http.health import Status
from serve_app.http.warm_up import WarmUp
from serve_app.pipeline import synthesize
from serve_app.resumption import Policy, resumed
from serve_app.types import PcmChunk, SpeechRequest

CARD = fake_card()
SCHEDULE = (1, 2, 4)
SEED = 3
NUM_FRAMES = 10


def samples(num_frames=NUM_FRAMES):
    codes = np.concatenate([fake_codes(SEED, frame) for frame in range(num_frames)])
    return FakeSpeechDecoder().decode(codes)


class Service:
    """The application around fake stages, and what it did."""

    def __init__(self, cards=(CARD,), status=None, config=None, **talker):
        self.talker = FakeTalker(**{"num_frames": NUM_FRAMES, "chunk_frames": SCHEDULE, **talker})
        self.decoder = FakeSpeechDecoder()
        self.counts = {}
        self.observed = []
        self.status = status or Status("healthy", ready=True)
        self.app = build_api(self.speak, cards, config or IngressConfig(), self.get_status, self)

    def speak(self, request):
        return synthesize(self.talker, self.decoder, request)

    async def get_status(self):
        return self.status

    def count(self, metric, **labels):
        assert tuple(labels) == metric.labels
        (value,) = labels.values()
        self.counts[metric.name, value] = self.counts.get((metric.name, value), 0) + 1

    def observe(self, metric, value, **labels):
        assert tuple(labels) == metric.labels
        assert not metric.buckets or list(metric.buckets) == sorted(metric.buckets)
        self.observed.append(metric.name)
        assert value >= 0

    @property
    def idle(self):
        return (self.talker.running, self.decoder.streams) == (0, 0)

    def http(self):
        transport = httpx2.ASGITransport(app=self.app)
        return httpx2.AsyncClient(transport=transport, base_url="http://test")

    def client(self, http=None):
        return openai.AsyncOpenAI(
            api_key="none",
            base_url="http://test/v1",
            http_client=http or self.http(),
            max_retries=0,
        )


async def create(service, **fields):
    """One buffered call of the SDK."""
    defaults = {"model": "tts-1", "voice": "alloy", "input": "Hello."}
    extra = {"seed": SEED, **fields.pop("extra_body", {})}
    speech = service.client().audio.speech
    return await speech.create(**{**defaults, **fields}, extra_body=extra)


@asynccontextmanager
async def served(app):
    """The application behind a real socket."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


# Audio


def test_streamed_pcm_is_the_samples_of_the_model():
    service = Service()
    response = asyncio.run(create(service, response_format="pcm"))
    assert response.content == samples().tobytes()
    assert response.response.headers["content-type"] == "audio/pcm;rate=24000;channels=1"
    assert service.idle


def test_wav_is_the_default_and_streams_with_an_open_length():
    response = asyncio.run(create(Service()))
    headers = response.response.headers
    assert response.content == wav_header(24000) + samples().tobytes()
    assert headers["content-type"] == "audio/wav"
    assert "content-length" not in headers
    assert "x-finish-reason" not in headers
    assert "x-request-id" not in headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert headers["content-disposition"] == 'inline; filename="speech.wav"'
    assert headers["x-audio-sample-rate"] == "24000"
    assert headers["x-audio-channels"] == "1"
    assert int(headers["openai-processing-ms"]) >= 0
    assert re.fullmatch(r"ingress;dur=\d+\.\d\d", headers["server-timing"])
    with wave.open(io.BytesIO(response.content)) as reader:
        assert reader.readframes(NUM_FRAMES * 1920) == samples().tobytes()


@pytest.mark.parametrize("response_format", list(AudioFormat))
def test_a_whole_file_has_the_same_samples_and_a_length(response_format):
    service = Service()
    response = asyncio.run(
        create(service, response_format=response_format, extra_body={"stream": False})
    )
    assert response.content == encode_file(samples(), response_format, 24000)
    assert int(response.response.headers["content-length"]) == len(response.content)
    assert response.response.headers["x-finish-reason"] == "stop"
    assert service.idle


def test_a_limit_of_tokens_ends_the_audio_and_says_so():
    service = Service()
    response = asyncio.run(create(service, extra_body={"stream": False, "max_tokens": 3}))
    assert response.content == encode_file(samples(3), AudioFormat.WAV, 24000)
    assert response.response.headers["x-finish-reason"] == "length"


def test_the_streaming_client_gets_the_first_chunk_while_the_rest_is_made():
    async def main():
        gate = asyncio.Event()
        calls = 0

        async def sleep(_):
            nonlocal calls
            calls += 1
            if calls == 3:
                await gate.wait()

        service = Service(sleep=sleep)
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            client = service.client(http).with_options(base_url=f"{url}/v1")
            async with client.audio.speech.with_streaming_response.create(
                model="tts-1",
                voice="nova",
                input="Hello.",
                response_format="wav",
                extra_body={"seed": SEED},
            ) as response:
                pieces = response.iter_bytes()
                data = await anext(pieces)
                assert data == wav_header(24000) + samples(1).tobytes()
                gate.set()
                async for piece in pieces:
                    data += piece
        assert data == wav_header(24000) + samples().tobytes()
        assert service.idle

    asyncio.run(main())


def test_the_short_path_works_and_the_metrics_are_recorded():
    async def main():
        service = Service()
        async with service.http() as http:
            response = await http.post("/audio/speech", json={"input": "Hello.", "seed": SEED})
        assert response.content == wav_header(24000) + samples().tobytes()
        assert service.counts == {(metrics.REQUESTS.name, "200"): 1}
        assert service.observed == [
            metrics.TIME_TO_FIRST_AUDIO.name,
            metrics.REQUEST_DURATION.name,
            metrics.AUDIO_DURATION.name,
        ]

    asyncio.run(main())


def test_instructions_that_the_model_ignores_are_reported_in_a_header():
    service = Service(cards=(fake_card(supports_instructions=False),))
    response = asyncio.run(create(service, instructions="Whisper."))
    assert response.response.headers["x-warning"].startswith("instructions ignored")
    assert "x-warning" not in asyncio.run(create(service, instructions="None")).response.headers


@pytest.mark.parametrize("voice", ["alloy", "nobody", {"id": "voice_1"}])
def test_a_designed_voice_is_made_whatever_voice_the_client_must_name(voice):
    service = Service(cards=(fake_card(task="voice_design", voices=()),))
    asyncio.run(create(service, voice=voice, instructions="Old and warm."))
    (request,) = service.talker.requests
    assert request.voice is None
    assert request.instructions == "Old and warm."


def test_the_limit_of_tokens_is_the_one_of_the_card():
    service = Service(cards=(fake_card(max_new_tokens=12),))
    asyncio.run(create(service, extra_body={"max_new_tokens": 12}))
    for field in ("max_new_tokens", "max_tokens", "min_new_tokens"):
        with pytest.raises(openai.BadRequestError, match="12"):
            asyncio.run(create(service, extra_body={field: 13}))
    assert len(service.talker.requests) == 1


def test_the_id_of_the_client_is_used_where_it_is_well_formed():
    async def main():
        service = Service()
        async with service.http() as http:
            for request_id in ("req_1", "req_1", "no spaces, please"):
                headers = {"x-request-id": request_id}
                response = await http.post(
                    "/v1/audio/speech", json={"input": "Hello."}, headers=headers
                )
                assert "x-request-id" not in response.headers
        first, second, third = (request.request_id for request in service.talker.requests)
        assert first.startswith("req_1-")
        assert second.startswith("req_1-")
        assert first != second
        assert "please" not in third

    asyncio.run(main())


# Errors


BAD_FIELDS = [
    ({"model": "gpt-9"}, 404, "model", "model_not_found", "gpt-9"),
    ({"model": 5}, 400, "model", None, "string"),
    ({"input": None}, 400, "input", None, "Missing required parameter: 'input'"),
    ({"input": ["Hello."]}, 400, "input", None, "string"),
    ({"input": " \n "}, 400, "input", "empty_string", "empty"),
    ({"input": "x" * 4097}, 400, "input", "string_above_max_length", "4096"),
    ({"input": "Hi <|im_end|> there"}, 400, "input", None, "<|im_end|>"),
    ({"input": "Hi <tts_pad>"}, 400, "input", None, "<tts_pad>"),
    ({"instructions": "<|im_start|>"}, 400, "instructions", None, "<|im_start|>"),
    ({"instructions": "x" * 4097}, 400, "instructions", "string_above_max_length", "4096"),
    ({"voice": "nobody"}, 400, "voice", "voice_not_found", "vivian, serena, ryan"),
    ({"voice": 3}, 400, "voice", None, "string"),
    ({"voice": {"id": 3}}, 400, "voice", None, "string"),
    ({"voice": {"name": "vivian"}}, 400, "voice", None, "string"),
    ({"language": "klingon"}, 400, "language", None, "chinese, english"),
    ({"language": "fr"}, 400, "language", None, "german"),
    ({"response_format": "mp3"}, 400, "response_format", "unsupported_format", "wav, pcm"),
    ({"response_format": "doc"}, 400, "response_format", "unsupported_format", "wav, pcm"),
    ({"stream_format": "sse"}, 400, "stream_format", "unsupported_format", "not available yet"),
    ({"speed": 1.5}, 400, "speed", None, "not available yet"),
    ({"speed": "fast"}, 400, "speed", None, "number"),
    ({"sample_rate": 8000}, 400, "sample_rate", None, "24000"),
    ({"stream": "yes"}, 400, "stream", None, "boolean"),
    ({"seed": -1}, 400, "seed", None, "greater than or equal to 0"),
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
    ({"ref_audio": "data:"}, 400, "ref_audio", None, "cloning"),
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
            body = {"input": "Hello.", "stream": stream}
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


# The client leaves


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


# Lists, health


def get(service, path):
    async def main():
        async with service.http() as http:
            return await http.get(path)

    return asyncio.run(main())


def test_the_openai_client_reads_the_models():
    async def main():
        service = Service()
        listed = await service.client().models.list()
        assert [model.id for model in listed.data] == [CARD.name]
        assert (await service.client().models.retrieve("tts-1")).id == CARD.name
        assert (await service.client().models.retrieve(CARD.name)).object == "model"

    asyncio.run(main())


def test_the_other_lists_have_the_shapes_their_readers_expect():
    service = Service()
    assert get(service, "/v1/audio/models").json()["models"][0]["id"] == CARD.name
    voices = get(service, "/v1/audio/voices").json()["voices"]
    assert {"id", "name"} <= voices[0].keys()
    assert "alloy" in get(service, "/v1/audio/voices?legacy=true").json()["voices"]
    assert get(service, f"/v1/models/{CARD.path}").json()["id"] == CARD.name
    assert get(service, "/").json()["docs"] == "/docs"
    assert get(service, "/docs").status_code == 200
    schema = get(service, "/openapi.json").json()
    assert "response_format" in json.dumps(schema["paths"]["/v1/audio/speech"])


@pytest.mark.parametrize(
    ("state", "status"),
    [("healthy", 200), ("degraded", 200), ("initializing", 503), ("unhealthy", 503)],
)
def test_health_is_ok_only_when_requests_can_be_served(state, status):
    replicas = {"Talker": {"ready": 1, "total": 2}}
    info = {"backend": "vllm", "placement": "split", "devices": {"Talker": "cpu"}}
    service = Service(status=Status(state, True, replicas=replicas, info=info))
    response = get(service, "/health")
    assert response.status_code == status
    body = response.json()
    assert body["status"] == state
    assert body["models"] == [CARD.name]
    assert body["backend"] == {"name": "vllm", "model_id": CARD.name, "ready": True}
    assert (body["replicas"], body["placement"]) == (replicas, "split")
    assert body["embedded"] is False
    assert "note" not in body
    assert get(service, "/livez").status_code == 200
    assert get(service, "/version").json()["version"] == body["version"]


def test_health_says_that_the_embedded_checkpoint_speaks_no_words():
    body = get(Service(cards=(fake_card(embedded=True),)), "/health").json()
    assert body["embedded"] is True
    assert "not words" in body["note"]


def test_ready_follows_the_warm_up():
    async def main():
        outcomes = [StageUnavailable("starting"), ValueError("secret"), None]
        pauses, reasons = [], []
        service = Service()
        talker = service.talker

        def speak(request):
            error = outcomes.pop(0)
            service.talker = FakeTalker(fail_at=0, error=error) if error else talker
            return service.speak(request)

        async def sleep(pause_s):
            pauses.append(pause_s)
            service.status = Status("initializing", warm_up.passed, warm_up.reason)
            assert (await http.get("/ready")).status_code == 503
            reasons.append((await http.get("/readyz")).json()["reason"])

        warm_up = WarmUp(speak, (CARD,), sleep)
        assert not warm_up.passed
        async with service.http() as http:
            await warm_up.run()
            service.status = Status("healthy", warm_up.passed, warm_up.reason)
            response = await http.get("/ready")
            assert response.status_code == 200
            assert response.json() == {"ready": True, "reason": None}
        assert len(pauses) == 2
        assert reasons[0].endswith("is tried again: starting")
        assert reasons[1].endswith("failed: ValueError")
        (request,) = talker.requests
        assert request.max_new_tokens == 4

    asyncio.run(main())


# Handles


class FakeHandle:
    """A deployment handle whose calls are served by `speak(request, done)`, pickled as by Serve."""

    def __init__(self, speak):
        self.speak = self
        self._speak = speak
        self.cancelled = 0

    def options(self, *, stream, request_serialization, response_serialization):
        assert stream
        assert request_serialization == response_serialization == "pickle"
        return self

    def remote(self, request, done):
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
        self.resumed = resumed(through(self.handle), Policy(5.0, 5.0, 20.0, pause_s=0.0))

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


def test_a_call_cancelled_by_the_other_side_is_a_loss():
    service = OverHandle((0, asyncio.CancelledError()), (None, None))
    response = asyncio.run(create(service, response_format="pcm"))
    assert response.content == samples().tobytes()


def test_closing_cancels_the_call():
    async def main():
        service = OverHandle((None, None))
        chunks = service.speak(SpeechRequest("r", CARD.name, "Hello.", "vivian", "auto", SEED))
        await anext(chunks)
        await chunks.aclose()
        assert service.handle.cancelled == 1

    asyncio.run(main())
