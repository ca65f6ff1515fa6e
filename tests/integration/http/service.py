"""The HTTP application around fake stages, and clients of it."""

import asyncio
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import httpx2
import numpy as np
import openai
import uvicorn

from serve_app.config import IngressConfig
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_card, fake_codes
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.draining.drain import Drain
from serve_app.http.health import Status
from serve_app.pipeline import synthesize

CARD = fake_card()
SCHEDULE = (1, 2, 4)
SEED = 3
NUM_FRAMES = 10


def samples(num_frames=NUM_FRAMES):
    codes = np.concatenate([fake_codes(SEED, frame) for frame in range(num_frames)])
    return FakeSpeechDecoder().decode(codes)


class Service:
    """The application around fake stages, and what it did."""

    def __init__(
        self,
        cards=(CARD,),
        status=None,
        config=None,
        look=lambda priority: None,
        encoder=None,
        **talker,
    ):
        self.talker = FakeTalker(**{"num_frames": NUM_FRAMES, "chunk_frames": SCHEDULE, **talker})
        self.decoder = FakeSpeechDecoder()
        self.counts = {}
        self.observed = []
        self.sums = {}
        self.gauges = {}
        self.status = status or Status("healthy")
        self.catalog = Catalog(cards)
        limits = config or IngressConfig()
        self.encoder = encoder
        self.drain = Drain()
        self.app = build_api(
            self.speak,
            self.catalog,
            limits,
            self.get_status,
            self,
            look=look,
            encoder_of=lambda card: self.encoder,
            drain=self.drain,
        )

    def speak(self, request):
        return synthesize(self.talker, self.decoder, request)

    async def get_status(self):
        return self.status

    def count(self, metric, **labels):
        assert tuple(labels) == metric.labels
        key = (metric.name, *labels.values())
        self.counts[key] = self.counts.get(key, 0) + 1

    def add(self, metric, amount, **labels):
        assert tuple(labels) == metric.labels
        assert amount >= 0
        self.sums[metric.name] = self.sums.get(metric.name, 0) + amount

    def set(self, metric, value, **labels):
        assert metric.is_gauge
        self.gauges[metric.name, *labels.values()] = value

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
    """One buffered call of the SDK, in a format whose samples can be compared."""
    defaults = {"model": "tts-1", "voice": "alloy", "input": "Hello.", "response_format": "wav"}
    extra = {"seed": SEED, **fields.pop("extra_body", {})}
    speech = service.client().audio.speech
    return await speech.create(**{**defaults, **fields}, extra_body=extra)


@asynccontextmanager
async def served(app, stopping=None):
    """The application behind a real socket; its server stops once `stopping` is set."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]

    async def stop():
        await stopping.wait()
        server.should_exit = True

    told = None if stopping is None else asyncio.create_task(stop())
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        if told is not None:
            told.cancel()
        server.should_exit = True
        await running


@contextmanager
def running(cards=(CARD,), **talker):
    """A server in a thread of its own: its address, and the service behind it."""
    service = Service(cards, **talker)
    config = uvicorn.Config(service.app, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join(timeout=20)


def get(service, path):
    async def main():
        async with service.http() as http:
            return await http.get(path)

    return asyncio.run(main())
