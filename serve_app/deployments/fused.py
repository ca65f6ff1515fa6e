"""Talker, code predictor and speech decoder beside each other in one process: placement `fused`."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppConfig, Environment
from serve_app.deployments.calls import ending_refused, telling
from serve_app.deployments.ray_serve import replica, starts
from serve_app.deployments.recorded import StageStats, load_of, ray_recorder, recorded
from serve_app.load.served import About, Served
from serve_app.pipeline import timed
from serve_app.protocols import require
from serve_app.scaling.board import Board
from serve_app.types import PcmChunk, SpeechRequest


@serve.deployment
class Fused:
    """All stages on one side of one process boundary; to the ingress the same as SpeechDecoder."""

    @starts.saying_why
    async def __init__(
        self, config: AppConfig, device: str, about: About, *beside: DeploymentHandle
    ) -> None:
        del beside  # Serve starts them with this one; it calls none
        from serve_app.models.checkpoint.card import describe
        from serve_app.models.checkpoint.locate import checkpoint_folder
        from serve_app.models.fused import standby
        from serve_app.models.fused.process import SpeechProcess

        began_s = time.monotonic()
        replica.begin()
        self._recorder = ray_recorder()
        self._board = Board(config.talker.max_num_seqs)
        self._stage_stats = StageStats(self._recorder, "fused")
        self._decoder_stats = StageStats(self._recorder, "speech_decoder")
        folder = await asyncio.to_thread(checkpoint_folder, config)
        self._about = about
        self._card = await asyncio.to_thread(describe, config, folder)
        standbys = Environment.read().standbys
        before_s = time.monotonic() - began_s
        self._speech = await SpeechProcess.start(folder, config, device, standbys=standbys)
        starts.say({"replica": before_s, **self._speech.start_parts})
        if standbys is not None and device == "cuda":
            # For the replica that replaces this one, or comes beside it; the raylet stays.
            standby.start_next(standbys, anchor=os.getppid())

    @telling
    @ending_refused
    def speak(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield the audio after `done` (int64 [T, Q]); raises what talker and decoder raise."""
        stream = self._speech.speak(request, done)
        stream = recorded(stream, request, done, self._recorder, "talker", "speech_decoder")
        stream = self._board.noted(stream, resumed=done is not None)
        return timed("stages", stream)

    async def served(self) -> Served:
        """What is served, for an ingress."""
        return Served(self._card, self._about)

    async def stats(self) -> dict[str, dict[str, float]]:
        return {stage: dict(load) for stage, load in (await self._speech.stats()).items()}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        stats = await self._speech.stats()
        load = load_of({**stats["speech_decoder"], **stats["talker"]})
        return {**load, **self._board.report()}

    async def check_health(self) -> None:
        require(await self._speech.health())
        stats = await self._speech.stats()
        self._stage_stats.note(stats["talker"])
        self._decoder_stats.note_work(stats["speech_decoder"])

    def __del__(self) -> None:
        if hasattr(self, "_speech"):
            self._speech.close()
