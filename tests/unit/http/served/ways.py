"""A way to the stages of a model that is no more than a stand-in for talker and decoder."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.fakes import FakeSpeechDecoder, FakeTalker, FakeVoiceEncoder
from serve_app.http.served.application import Application
from serve_app.load.gate import StageLimits, StagePlaces
from serve_app.load.places import Places
from serve_app.load.served import About, Served
from serve_app.pipeline import synthesize
from serve_app.resumption import Policy
from serve_app.types import ModelCard, PcmChunk, SpeechRequest

POLICY = Policy(first_s=30.0, gap_s=30.0, deadline_s=30.0, max_attempts=1)


class FakeWay:
    """The way to stages of one replica that serves `card`, once it is there."""

    def __init__(self, card: ModelCard, places: int = 4) -> None:
        self.card = card
        self.there = asyncio.Event()
        self.there.set()
        self.talker: Any = FakeTalker(num_frames=4)
        self.voice_encoder = FakeVoiceEncoder()
        self.places = places
        self.live = Places[str](lambda: 0.0)
        self.live.set_live(["a"])
        self.asked: list[str] = []
        self.requests: list[SpeechRequest] = []

    async def call(
        self, request: SpeechRequest, done: np.ndarray | None
    ) -> AsyncGenerator[PcmChunk, None]:
        self.requests.append(request)
        async with aclosing(synthesize(self.talker, FakeSpeechDecoder(), request, done)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def ask(self) -> Served:
        await self.there.wait()
        limits = StageLimits((("Fused", self.places),), max_queued=0, max_wait_s=0.0)
        return Served(self.card, About(limits, {"placement": "fused"}))

    def stage(self, deployment: str, places: int) -> StagePlaces:
        self.asked.append(deployment)
        return StagePlaces(lambda: self.live, places)


def application(name: str, **changes: Any) -> Application:
    replicas = {"Fused": {"ready": 1, "total": 1}}
    names = frozenset({name})
    usual = Application(name, "Fused", "running", "1", name, names, None, replicas)
    return replace(usual, **changes)
