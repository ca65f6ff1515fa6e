"""The speech decoder's deployment: pulls codec frames from the talker, yields samples."""

import asyncio
from collections.abc import AsyncGenerator

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppConfig
from serve_app.deployments.calls import ending_refused, reach, telling, through
from serve_app.deployments.ray_serve import replica, starts
from serve_app.deployments.recorded import StageStats, load_of, of_hop, ray_recorder, recorded
from serve_app.load.gate import elsewhere
from serve_app.load.routing import stage
from serve_app.load.served import About, Served
from serve_app.pipeline import synthesize, timed
from serve_app.protocols import require
from serve_app.resumption import Observe, Policy, Resumed, resumed
from serve_app.scaling.board import Board
from serve_app.types import CodecFrames, PcmChunk, SpeechRequest


@serve.deployment(name="SpeechDecoder")
class SpeechDecoderDeployment:
    """The stage that the ingress talks to in placement `split`."""

    @starts.saying_why
    async def __init__(
        self,
        config: AppConfig,
        device: str,
        talker: DeploymentHandle,
        about: About,
        *beside: DeploymentHandle,
    ) -> None:
        del beside  # Serve starts them with this one; it calls none
        replica.begin()
        self._recorder = ray_recorder()
        self._board = Board(config.speech_decoder.max_streams)
        self._stage_stats = StageStats(self._recorder, "speech_decoder")
        observe = of_hop(self._recorder, "speech_decoder")
        self._talker = RemoteTalker(talker, config, observe)
        self._talker_stats = talker.stats
        self._about = about
        self._decoder, self._card = await asyncio.to_thread(_load, config, device)

    @telling
    @ending_refused
    def speak(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield the audio after `done` (int64 [T, Q]); raises what talker and decoder raise.

        The talker is asked where a stream slot is free, which is taken once it has begun. It is
        asked again when it is lost: the slot and its state stay.
        """
        stream = synthesize(self._talker, self._decoder, request, done)
        stream = recorded(stream, request, done, self._recorder, "speech_decoder")
        stream = self._board.noted(stream, resumed=done is not None)
        return timed("stages", stream)

    async def served(self) -> Served:
        """What is served, for an ingress."""
        return Served(self._card, self._about)

    async def stats(self) -> dict[str, dict[str, float]]:
        """Load of this replica, and of one replica of each stage behind it."""
        upstream = await self._talker_stats.remote()
        return {"speech_decoder": dict(self._decoder.stats()), **upstream}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        return {**load_of(self._decoder.stats()), **self._board.report()}

    async def check_health(self) -> None:
        self._stage_stats.note(self._decoder.stats())
        require(self._decoder.health())

    def __del__(self) -> None:
        if hasattr(self, "_decoder"):
            self._decoder.close()


class RemoteTalker:
    """The way to the talkers of a deployment: a `FrameSource` that goes on at another one.

    What makes the talker silent for half of what the ingress waits counts as its loss, so that the
    ingress, which would begin with a new decoder, need not find out.
    """

    def __init__(self, talker: DeploymentHandle, config: AppConfig, observe: Observe) -> None:
        # All handles made from it share what it knows.
        reach(talker)
        patience = config.ingress
        policy = Policy(
            first_s=patience.first_audio_timeout_s / 2,
            gap_s=patience.chunk_timeout_s / 2,
            deadline_s=patience.resume_timeout_s,
        )
        places = stage(talker.deployment_id, config.talker.max_num_seqs)
        call = elsewhere(through(talker, "frames"), places)
        self._frames: Resumed[CodecFrames] = resumed(call, policy, observe)

    def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        return self._frames(request, done)


def _load(config: AppConfig, device: str):
    from serve_app.models.start_times import start_times

    start_times.begin()
    from serve_app.models.checkpoint.card import describe
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.split import ready_decoder

    folder = checkpoint_folder(config)
    decoder = ready_decoder(open_checkpoint(folder), config, device)
    starts.say(start_times.parts)
    return decoder, describe(config, folder)
