"""One address before several models: who answers, who waits, who refuses."""

import asyncio
from contextlib import aclosing, asynccontextmanager

import httpx2

from serve_app.config import AdmissionSettings, IngressConfig
from serve_app.errors import Overloaded
from serve_app.fakes import FakeTalker, fake_card
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import overall
from serve_app.http.served.models import Models
from serve_app.metrics import NoRecorder
from serve_app.types import SpeechRequest
from tests.unit.http.served.ways import POLICY, FakeWay, application
from tests.waiting import until

SPEECH = {"input": "Hello.", "response_format": "pcm", "seed": 1}
OWN = {"Ingress": {"ready": 1, "total": 1}}


class Server:
    """The application before `voices`, `design`, and `late`, which is still starting."""

    def __init__(self):
        self.ways = {
            "voices": FakeWay(fake_card(name="voices")),
            "design": FakeWay(fake_card(name="design", task="voice_design", voices=())),
            "late": FakeWay(fake_card(name="late", task="base", voices=())),
        }
        self.ways["late"].there.clear()
        catalog = Catalog()
        self.models = Models(
            catalog,
            lambda name, entry: self.ways[name],
            POLICY,
            NoRecorder(),
            lambda outcome, silent_s: None,
        )
        self.app = build_api(
            self.models.speak,
            catalog,
            IngressConfig(),
            self.status,
            gather=self.gather,
            look=self.models.look,
        )

    async def status(self):
        return overall("tts", OWN, self.models.statuses(), {"backend": "vllm"})

    async def gather(self):
        return []

    def spoken(self, name):
        """Texts that a model was asked to speak, without those of its warm-up."""
        requests = self.ways[name].talker.requests
        return [r for r in requests if not r.request_id.startswith("warm-up")]


@asynccontextmanager
async def served():
    server = Server()
    server.models.follow(map(application, server.ways))
    await until(lambda: sum(s.state == "healthy" for s in server.models.statuses()) == 2)
    transport = httpx2.ASGITransport(app=server.app)
    try:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as http:
            yield server, http
    finally:
        server.models.close()


async def speak(http, **fields):
    return await http.post("/v1/audio/speech", json={**SPEECH, **fields})


def test_a_request_reaches_the_model_that_it_names_or_needs():
    async def main():
        async with served() as (server, http):
            for fields, name in (
                ({}, "voices"),
                ({"voice": "serena"}, "voices"),
                ({"model": "tts-1", "voice": "alloy"}, "voices"),
                ({"instructions": "Old and warm."}, "design"),
                ({"model": "design", "instructions": "Old and warm."}, "design"),
            ):
                before = len(server.spoken(name))
                assert (await speak(http, **fields)).status_code == 200
                assert len(server.spoken(name)) == before + 1
            assert len(server.spoken("voices")) == 3

    asyncio.run(main())


def test_a_request_that_nobody_can_answer_now_says_so():
    async def main():
        async with served() as (server, http):
            for fields in ({"model": "late"}, {"task_type": "Base"}, {"ref_audio": "x"}):
                waits = await speak(http, **fields)
                assert waits.status_code == 503
                assert waits.json()["error"]["code"] == "model_starting"
                assert "late" in waits.json()["error"]["message"]
                assert waits.headers["retry-after"] == "5"
            unknown = await speak(http, model="never")
            assert unknown.status_code == 404
            assert "Served here: voices, design; starting: late" in unknown.text
            wrong = await speak(http, model="design", voice="serena")
            assert wrong.status_code == 400
            assert "'voices' has" in wrong.json()["error"]["message"]
            server.ways["late"].there.set()
            await until(lambda: all(s.state == "healthy" for s in server.models.statuses()))
            named = await speak(http, model="voices", ref_audio="x")
            assert "'late' does" in named.json()["error"]["message"]

    asyncio.run(main())


def test_a_model_without_a_place_refuses_its_own_requests_only():
    async def main():
        async with served() as (server, http):
            server.models.limit({"voices": AdmissionSettings(max_wait_s=0.0)})
            server.ways["voices"].live.heard("a", 4)  # others have all four, and so it says
            full = Overloaded("full", stage="talker")
            server.ways["voices"].talker = FakeTalker(fail_at=0, error=full)
            refused = await speak(http, voice="serena")
            assert refused.status_code == 429
            assert (await speak(http, instructions="Calm.")).status_code == 200
            request = SpeechRequest("r", "design", "Hello.", None, "auto", 1)
            async with aclosing(server.models.speak(request)) as chunks:
                assert len((await anext(chunks)).samples)

    asyncio.run(main())


def test_the_state_of_each_model_is_told():
    async def main():
        async with served() as (server, http):
            health = (await http.get("/health")).json()
            assert health["status"] == "degraded"
            assert health["models"] == ["voices", "design"]
            assert health["backend"]["model_id"] == "voices"
            assert (health["placement"], health["replicas"]) == ("fused", OWN)
            states = {model["model"]: model["status"] for model in health["served"]}
            assert states == {"voices": "healthy", "design": "healthy", "late": "initializing"}
            ready = {
                name: (await http.get("/ready", params={"model": name})).status_code
                for name in ("voices", "design", "late", "never")
            }
            assert ready == {"voices": 200, "design": 200, "late": 503, "never": 404}
            assert (await http.get("/ready")).status_code == 200
            version = (await http.get("/version")).json()
            assert version["models"]["design"] == {"placement": "fused"}
            text = (await http.get("/metrics")).text
            for line in (
                'tts_model_ready{model="late"} 0',
                'tts_model_ready{model="voices"} 1',
                'tts_replicas{application="voices",deployment="Fused",state="ready"} 1',
                'tts_replicas{application="tts",deployment="Ingress",state="total"} 1',
            ):
                assert line in text
            # As long as one is served, the server is; then it is not.
            server.models.follow([application("late")])
            assert (await http.get("/ready")).status_code == 503
            server.models.follow([])
            gone = await speak(http)
            assert gone.status_code == 503

    asyncio.run(main())
