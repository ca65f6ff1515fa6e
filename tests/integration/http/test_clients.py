"""What programs that people run send, and how they read the answer: replayed from their sources."""

import asyncio
import base64
import io
import json
import wave

import numpy as np
import pytest

from serve_app.config import IngressConfig
from tests.integration.http.service import NUM_FRAMES, Service, get
from tests.unit.audio.signals import decoded

SECONDS = NUM_FRAMES * 0.08


def posted(service, body):
    async def main():
        async with service.http() as http:
            return await http.post("/v1/audio/speech", json=body)

    return asyncio.run(main())


def post(body, headers=None, path="/v1/audio/speech"):
    async def main():
        service = Service()
        async with service.http() as http:
            response = await http.post(path, json=body, headers=headers or {})
        assert response.status_code == 200, response.text
        assert service.idle
        return response

    return asyncio.run(main())


def assert_plays(data):
    audio, rate_hz = decoded(data)
    assert SECONDS - 0.001 <= len(audio) / rate_hz < SECONDS + 0.1


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        pytest.param(
            {
                "input": "Hi.",
                "response_format": "mp3",
                "voice": "alloy",
                "speed": 1,
                "model": "tts-1",
            },
            {"Authorization": "Bearer "},
            id="SillyTavern without a key",
        ),
        pytest.param(
            {"input": "Hi.", "model": "tts-1", "voice": "alloy", "backend": None},
            {"Authorization": "Bearer undefined"},
            id="LibreChat",
        ),
        pytest.param({"model": "tts-1", "input": "Hi.", "voice": "alloy"}, {}, id="AnythingLLM"),
        pytest.param(
            {"model": "tts-1-hd", "input": "Hi.", "voice": "nova", "some_admin_param": [1]},
            {"X-OpenWebUI-User-Id": "1"},
            id="Open WebUI",
        ),
        pytest.param(
            {
                "model": "gpt-4o-mini-tts",
                "voice": "marin",
                "input": "Hi.",
                "instructions": "None",
                "response_format": "mp3",
            },
            {},
            id="Home Assistant",
        ),
        pytest.param(
            {"input": "Hi.", "voice": "alloy", "model": "tts-1", "stream": True}, {}, id="peers"
        ),
    ],
)
def test_clients_that_take_the_whole_body_get_mp3(body, headers):
    response = post(body, headers)
    assert response.headers["content-type"] == "audio/mpeg"
    assert_plays(response.content)


def test_livekit_gets_mp3_in_events():
    response = post(
        {
            "model": "gpt-4o-mini-tts",
            "voice": "ash",
            "input": "Hi.",
            "response_format": "mp3",
            "speed": 1.0,
            "stream_format": "sse",
        }
    )
    assert response.headers["content-type"].split(";")[0] == "text/event-stream"
    audio, ended = b"", False
    for line in response.text.split("\n"):
        if not line.startswith("data: "):
            continue
        event = json.loads(line[len("data: ") :])
        if event["type"] == "speech.audio.delta":
            audio += base64.b64decode(event.get("delta") or event.get("audio"))
        ended |= event["type"] == "speech.audio.done"
    assert ended
    # Its decoder looks at the first 32 bytes only.
    assert audio[0] == 0xFF
    assert audio[1] & 0xE0 == 0xE0
    assert_plays(audio)


def test_wyoming_finds_a_header_and_samples_in_the_first_piece():
    async def main():
        async with (
            Service()
            .client()
            .audio.speech.with_streaming_response.create(
                model="tts-1", voice="alloy", input="Hi.", response_format="wav"
            ) as response
        ):
            first = await anext(response.iter_bytes())
        with wave.open(io.BytesIO(first)) as reader:
            assert reader.getparams()[:3] == (1, 2, 24000)
        assert len(first) > 44

    asyncio.run(main())


def test_pipecat_gets_samples_in_its_own_pieces():
    async def main():
        async with (
            Service()
            .client()
            .audio.speech.with_streaming_response.create(
                model="gpt-4o-mini-tts",
                voice="coral",
                input="Hi.",
                response_format="pcm",
                speed=1.0,
            ) as response
        ):
            data = b"".join([piece async for piece in response.iter_bytes(24000)])
        assert np.frombuffer(data, "<i2").any()
        assert len(data) == 2 * NUM_FRAMES * 1920

    asyncio.run(main())


def test_open_webui_finds_the_rate_of_bare_samples_in_the_content_type():
    response = post({"input": "Hi.", "response_format": "pcm", "sample_rate": 16000})
    assert response.headers["content-type"] == "audio/pcm;rate=16000;channels=1"
    assert len(response.content) == 2 * NUM_FRAMES * 1280


def test_an_mp3_may_be_put_behind_another():
    # LibreChat cuts long texts and joins the answers.
    one = post({"input": "Hi.", "model": "tts-1", "voice": "alloy"}).content
    audio, rate_hz = decoded(one + one)
    assert len(audio) / rate_hz == pytest.approx(2 * SECONDS, abs=0.2)


def test_a_tool_whose_fields_are_all_strings_is_understood():
    # As n8n sends what is typed into the fields of its form.
    body = {
        "input": "Hi.",
        "voice": "alloy",
        "response_format": "pcm",
        "speed": "2.0",
        "stream": "false",
        "seed": "-1",
        "sample_rate": "16000",
        "max_tokens": "5",
    }
    response = post(body)
    assert int(response.headers["content-length"]) == len(response.content)
    assert response.headers["content-type"] == "audio/pcm;rate=16000;channels=1"
    assert len(response.content) == pytest.approx(2 * 5 * 1280 / 2, rel=0.1)
    assert len(post({"input": "Hi.", "response_format": "pcm", "sample_rate": 8000.0}).content)


def test_lists_are_found_by_who_leaves_out_openais_prefix():
    for path in ("/models", "/models/tts-1", "/audio/models", "/audio/voices"):
        bare, usual = get(Service(), path), get(Service(), f"/v1{path}")
        assert (bare.status_code, usual.status_code) == (200, 200)
        assert bare.json().keys() == usual.json().keys()


def test_another_servers_name_of_a_model_is_taken_for_the_default_where_that_is_allowed():
    body = {"input": "Hi.", "model": "kokoro", "voice": "alloy"}
    assert posted(Service(), body).json()["error"]["code"] == "model_not_found"
    lenient = Service(config=IngressConfig(accept_any_model=True))
    assert posted(lenient, body).status_code == 200
    assert lenient.talker.requests[0].model == "qwen3-tts-fake"
