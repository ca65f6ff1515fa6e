"""Many texts in one request, seen through a plain HTTP client."""

import asyncio
import base64
import json

import httpx2
import pytest

from serve_app import metrics
from serve_app.config import BatchConfig, IngressConfig
from serve_app.errors import Overloaded, StageFailed
from tests.integration.http.service import SEED, Service, samples, served
from tests.waiting import until

PATH = "/v1/audio/speech/batch"


def posted(service, body):
    async def main():
        async with service.http() as http:
            return await http.post(PATH, json=body)

    return asyncio.run(main())


class Busy(Service):
    """Refuses the first `refusals` calls of the background, and notes how many run together."""

    def __init__(self, refusals=0, **arguments):
        super().__init__(**arguments)
        self.refusals, self.most = refusals, 0

    async def speak(self, request):
        if request.background and self.refusals:
            self.refusals -= 1
            raise Overloaded("full", 0.01)
        async for chunk in super().speak(request):
            self.most = max(self.most, self.talker.running)
            yield chunk


def test_every_item_has_its_audio_in_the_order_of_the_request():
    service = Busy(config=IngressConfig(background_streams=2))
    texts = [f"Text {number}." for number in range(7)]
    response = posted(
        service,
        {
            "items": [{"input": text} for text in texts[:-1]]
            + [{"input": texts[-1], "response_format": "flac", "voice": "ryan"}],
            "response_format": "pcm",
            "voice": "alloy",
            "seed": SEED,
            "stream_format": "sse",
        },
    )
    assert response.status_code == 200
    body = response.json()
    assert body["id"].startswith("batch_")
    assert (body["total"], body["succeeded"], body["failed"]) == (7, 7, 0)
    assert [result["index"] for result in body["results"]] == list(range(7))
    for result in body["results"][:-1]:
        assert result["status"] == "success"
        assert result["error"] is None
        assert base64.b64decode(result["audio_data"]) == samples().tobytes()
        assert result["media_type"] == "audio/pcm;rate=24000;channels=1"
        assert result["usage"]["output_tokens"] == 10
        assert result["finish_reason"] == "stop"
    assert base64.b64decode(body["results"][-1]["audio_data"])[:4] == b"fLaC"
    assert [request.text for request in service.talker.requests] == texts
    assert service.talker.requests[-1].voice.name == "ryan"
    assert service.most == 2
    assert service.idle
    assert service.counts[metrics.REQUESTS.name, "200"] == 1


def test_what_an_item_does_wrong_is_its_error_alone():
    body = posted(
        Service(),
        {"items": [{"input": " "}, {"input": "Hello."}, 3, {"input": "a", "voice": "nobody"}]},
    ).json()
    assert (body["succeeded"], body["failed"]) == (1, 3)
    codes = [result["error"] and result["error"]["code"] for result in body["results"]]
    assert codes == ["empty_string", None, None, "voice_not_found"]
    assert [result["status"] for result in body["results"]] == [
        "error",
        "success",
        "error",
        "error",
    ]


def test_an_item_that_fails_inside_tells_nothing_and_the_others_go_on():
    service = Service(fail_at=0, error=StageFailed("CUDA at /root"))
    body = posted(service, {"items": [{"input": "One."}, {"input": "Two."}]}).json()
    assert body["failed"] == 2
    assert "CUDA" not in json.dumps(body)
    assert body["results"][1]["error"]["code"] == "generation_failed"
    assert service.idle


def test_an_item_for_which_there_is_no_room_waits():
    service = Busy(refusals=1)
    body = posted(service, {"items": [{"input": "One."}, {"input": "Two."}]}).json()
    assert body["succeeded"] == 2
    assert len(service.talker.requests) == 2


def test_an_item_that_waits_too_long_fails():
    service = Busy(
        refusals=1000, config=IngressConfig(batch=BatchConfig(timeout_s=0.1), background_streams=2)
    )
    body = posted(service, {"items": [{"input": "One."}, {"input": "Two."}]}).json()
    assert [result["error"]["code"] for result in body["results"]] == ["server_overloaded"] * 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "list"),
        ({"items": []}, "list"),
        ({"items": "a"}, "list"),
        ({"items": [{"input": "a"}] * 65}, "at most 64"),
        ({"items": [{"input": "a" * 30000}] * 5}, "at most 131072"),
        ({"items": [{}] * 5, "input": "a" * 30000}, "at most 131072"),
    ],
)
def test_a_batch_that_is_none_or_too_large_is_refused_as_a_whole(body, message):
    service = Service()
    response = posted(service, body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]
    assert response.json()["error"]["param"] == "items"
    assert service.talker.requests == []


def test_a_client_that_leaves_frees_every_stage():
    async def main():
        service = Service(num_frames=100_000, frame_s=0.001)
        async with served(service.app) as url, httpx2.AsyncClient() as http:
            items = [{"input": "Hello."}] * 8
            async with http.stream("POST", url + PATH, json={"items": items}) as response:
                await anext(response.aiter_bytes())
                await until(lambda: not service.idle)
            await until(lambda: service.idle)
        assert len(service.talker.requests) == 4

    asyncio.run(main())
