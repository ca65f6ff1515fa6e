"""Requests of Together's clients and of Vapi's server."""

import asyncio
import base64
import json

import httpx2
import numpy as np
import pytest

from serve_app.errors import StageFailed
from tests.integration.http.service import SEED, Service, samples, served


def posted(service, path, body, **arguments):
    async def main():
        async with service.http() as http:
            return await http.post(path, json=body, **arguments)

    return asyncio.run(main())


RAW = {"input": "Hello.", "model": "tts-1", "voice": "alloy", "response_format": "raw"}


@pytest.mark.parametrize(
    "fields",
    [
        {"response_encoding": "pcm_s16le"},
        {},
        {"response_encoding": "pcm_s16le", "response_format": "pcm"},
    ],
)
def test_a_stream_for_togethers_clients(fields):
    response = posted(
        Service(), "/v1/audio/speech", {**RAW, "stream": True, "seed": SEED, **fields}
    )
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *deltas, end, rest = response.text.split("\n\n")
    assert (end, rest) == ("data: [DONE]", "")
    events = [json.loads(delta.removeprefix("data: ")) for delta in deltas]
    assert {event["type"] for event in events} == {"conversation.item.audio_output.delta"}
    assert all(event["item_id"] for event in events)
    assert b"".join(base64.b64decode(event["delta"]) for event in events) == samples().tobytes()


def test_raw_audio_without_a_stream_is_bare_samples():
    for body in (RAW, {**RAW, "stream": False, "response_encoding": "pcm_s16le"}):
        response = posted(Service(), "/v1/audio/speech", {**body, "seed": SEED})
        assert response.headers["content-type"] == "audio/pcm;rate=24000;channels=1"
        assert response.content == samples().tobytes()


def test_an_encoding_that_is_not_there_is_refused():
    response = posted(Service(), "/v1/audio/speech", {**RAW, "response_encoding": "pcm_mulaw"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_encoding"


def test_a_stream_for_together_that_breaks_does_not_end_well():
    async def main():
        service = Service(fail_at=5, error=StageFailed("broken"))
        received = b""
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            body = {**RAW, "stream": True}

            async def listen():
                nonlocal received
                async with http.stream("POST", f"{url}/v1/audio/speech", json=body) as response:
                    async for piece in response.aiter_bytes():
                        received += piece

            with pytest.raises(httpx2.RemoteProtocolError):
                await listen()
        assert b'"type":"error"' in received
        assert b"[DONE]" not in received

    asyncio.run(main())


def spoken(**message):
    return {"message": {"type": "voice-request", "text": "Hello.", **message}}


@pytest.mark.parametrize("rate_hz", [8000, 16000, 22050, 24000, 44100, 48000])
def test_vapi_gets_bare_samples_at_its_rate(rate_hz):
    body = spoken(sampleRate=rate_hz, timestamp=1, call={"id": "c"})
    response = posted(Service(), "/vapi/tts", body)
    assert response.status_code == 200
    assert len(np.frombuffer(response.content, "<i2")) == pytest.approx(0.8 * rate_hz, abs=1)


def test_the_address_that_vapi_is_given_chooses_voice_and_language():
    service = Service()
    response = posted(service, "/vapi/tts?voice=ryan&language=de", spoken())
    assert response.status_code == 200
    (request,) = service.talker.requests
    assert (request.voice.name, request.language) == ("ryan", "german")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "message"),
        ({"message": {"type": "status-update"}}, "message"),
        ({"message": "voice-request"}, "message"),
        (spoken(text=None), "input"),
        (spoken(text=3), "input"),
        (spoken(sampleRate=11025), "sample_rate"),
    ],
)
def test_what_vapi_does_not_send_is_refused(body, param):
    response = posted(Service(), "/vapi/tts", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
