"""Lists, health and readiness."""

import asyncio
import json

import httpx2
import pytest

from serve_app.config import AccessConfig, IngressConfig
from serve_app.errors import StageUnavailable
from serve_app.fakes import FakeTalker, fake_card
from serve_app.http.health import Status
from serve_app.http.warm_up import WarmUp
from tests.integration.http.service import CARD, Service, get, running


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
    "path",
    [
        *("/", "/health", "/ready", "/readyz", "/livez", "/version", "/docs", "/web/"),
        *("/v1/models", "/v1/audio/models", "/v1/audio/voices", "/models"),
    ],
)
def test_a_monitor_may_look_by_head(path):
    with running() as (url, _):
        head, get = httpx2.head(url + path), httpx2.get(url + path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_who_comes_to_a_websocket_without_one_is_told_so():
    for path in ("/v1/audio/speech/stream", "/v1/audio/speech/websocket", "/v1/realtime"):
        response = get(Service(), path)
        assert (response.status_code, response.headers["upgrade"]) == (426, "websocket")
        assert "WebSocket" in response.json()["error"]["message"]


def test_an_address_may_have_a_slash_at_its_end():
    for path in ("/v1/models", "/v1/models/tts-1", "/v1/audio/voices", "/health"):
        bare, slashed = get(Service(), path), get(Service(), f"{path}/")
        assert (slashed.status_code, slashed.json().keys()) == (200, bare.json().keys())
    assert get(Service(), "/web/").headers["content-type"].startswith("text/html")
    assert get(Service(), "/v1/none/").json()["error"]["code"] == "not_found"
    with running() as (url, _):
        response = httpx2.post(f"{url}/v1/audio/speech/", json={"input": "Hello."})
    assert (response.status_code, response.headers["content-type"]) == (200, "audio/mpeg")


def test_the_pages_can_be_left_out():
    service = Service(config=IngressConfig(access=AccessConfig(pages=False)))
    for path in ("/web", "/web/", "/web/index.html", "/docs", "/redoc", "/openapi.json"):
        response = get(service, path)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert "docs" not in get(service, "/").json()
    assert get(service, "/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("state", "status"),
    [("healthy", 200), ("degraded", 200), ("initializing", 503), ("unhealthy", 503)],
)
def test_health_is_ok_only_when_requests_can_be_served(state, status):
    replicas = {"Talker": {"ready": 1, "total": 2}}
    info = {"backend": "vllm", "placement": "split", "devices": {"Talker": "cpu"}}
    service = Service(status=Status(state, replicas=replicas, info=info))
    response = get(service, "/health")
    assert response.status_code == status
    body = response.json()
    assert body["status"] == state
    assert body["models"] == [CARD.name]
    assert body["backend"] == {"name": "vllm", "model_id": CARD.name, "ready": status == 200}
    assert (body["replicas"], body["placement"]) == (replicas, "split")
    assert body["embedded"] is False
    assert "note" not in body
    assert get(service, "/livez").status_code == 200
    assert get(service, "/version").json()["version"] == body["version"]


def test_health_says_what_the_embedded_checkpoint_is():
    body = get(Service(cards=(fake_card(embedded=True),)), "/health").json()
    assert body["embedded"] is True
    assert "small English model" in body["note"]


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
            assert not warm_up.passed
            service.status = Status("initializing", warm_up.reason)
            assert (await http.get("/ready")).status_code == 503
            reasons.append((await http.get("/readyz")).json()["reason"])

        answers = [StageUnavailable("importing"), CARD]

        async def ask():
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        warm_up = WarmUp(ask, speak, sleep)
        assert not warm_up.passed
        async with service.http() as http:
            await warm_up.run()
            assert warm_up.passed
            service.status = Status("healthy", warm_up.reason)
            response = await http.get("/ready")
            assert response.status_code == 200
            assert response.json() == {"ready": True, "reason": None}
        assert len(pauses) == 3
        assert reasons[0].endswith("is tried again: importing")
        assert reasons[1].endswith("is tried again: starting")
        assert reasons[2].endswith("failed: ValueError")
        (request,) = talker.requests
        assert request.max_new_tokens == 4

    asyncio.run(main())
