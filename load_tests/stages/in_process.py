"""Talker, code predictor and speech decoder in this process, as in placement `fused`, no Serve."""

import argparse
import asyncio
import itertools
import statistics
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from load_tests.reports import circumstances
from serve_app.config import AppConfig, CodePredictorConfig, SpeechDecoderConfig, TalkerConfig
from serve_app.models.checkpoint.files import Checkpoint, open_checkpoint
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.fused.speech import FusedSpeech
from serve_app.models.random_checkpoint.write import write_checkpoint
from serve_app.models.talker.engine import VllmTalker
from serve_app.types import NamedVoice, SpeechRequest, TaskType

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."


@dataclass(frozen=True, slots=True)
class Stages:
    """What a replica of `fused` holds.

    load_s, load_mib: what loading took; the memory is that of the whole device.
    """

    speech: FusedSpeech
    config: AppConfig
    load_s: float
    load_mib: int

    @classmethod
    def load(cls, checkpoint: Checkpoint, config: AppConfig, device: str) -> "Stages":
        began_s, before = time.perf_counter(), used_mib(device)
        speech = FusedSpeech.load(checkpoint, config, device)
        load_s = time.perf_counter() - began_s
        # Measured is what a replica does once it has all of its graphs.
        speech.decoder.runner.wait_until_captured()
        return cls(speech, config, load_s, used_mib(device) - before)

    @property
    def talker(self) -> VllmTalker:
        return self.speech.talker

    @property
    def spec(self) -> ModelSpec:
        return self.speech.talker.spec

    @property
    def steady_frames(self) -> int:
        """Frames of every chunk but a stream's first ones."""
        return self.config.speech_decoder.chunk_frames[-1]

    def facts(self, commit: str | None) -> dict[str, Any]:
        """Circumstances of a measurement, and what loading cost."""
        return {
            **circumstances.environment(commit),
            "config_digest": self.config.digest,
            "load_s": self.load_s,
            "load_mib": self.load_mib,
        }


def used_mib(device: str) -> int:
    """Memory in use on the whole GPU; 0 on a CPU."""
    if device != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def settings_for(streams: int, max_model_len: int, cuda_graphs: bool = True) -> AppConfig:
    """The shipped settings with room for `streams` streams and no graph beyond them."""
    sizes = CodePredictorConfig().batch_sizes
    needed = tuple(size for size in sizes if size < streams)
    needed += tuple(size for size in sizes if size >= streams)[:1]
    return AppConfig(
        placement="fused",
        talker=TalkerConfig(
            max_num_seqs=streams, max_model_len=max_model_len, cuda_graphs=cuda_graphs
        ),
        code_predictor=CodePredictorConfig(batch_sizes=needed),
        speech_decoder=SpeechDecoderConfig(max_streams=streams),
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every script has that loads a checkpoint."""
    parser.add_argument("--size", default="1.7b", choices=["0.6b", "1.7b", "tiny"])
    parser.add_argument("--checkpoint", type=Path, help="keep the checkpoint here and reuse it")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="JSON file for the numbers")
    parser.add_argument("--commit", help="what to report where there is no git repository")


def checkpoint_of(args: argparse.Namespace, variant: TaskType = "custom_voice") -> Checkpoint:
    """Open `args.checkpoint`, or a temporary one; written first where there is none.

    Random weights whose EOS is unreachable: every stream makes the asked number of frames.
    """
    folder = args.checkpoint or Path(tempfile.mkdtemp()) / args.size
    if not folder.exists():
        write_checkpoint(
            folder, size=args.size, variant=variant, eos="unreachable", device=args.device
        )
    return open_checkpoint(folder)


def request(index: int, frames: int) -> SpeechRequest:
    return SpeechRequest(
        f"bench-{index}", "bench", TEXT, NamedVoice("ryan"), "english", seed=index,
        streaming_text=True, max_new_tokens=frames,
    )  # fmt: skip


async def drain(stream: AsyncGenerator[Any, None], first: list[float] | None = None) -> None:
    """Read `stream` to its end; its first item's delay in seconds goes to `first`."""
    start = time.perf_counter()
    async with aclosing(stream):
        async for _ in stream:
            if first is not None:
                first.append(time.perf_counter() - start)
                first = None


@dataclass(slots=True)
class ClosedLoop:
    """What `streams` clients of a closed loop got, each asking anew when its audio has ended.

    first_s: delays of first audio, of requests made once all streams were past their first one.
    window_s, audio_s: that span, and the audio that came in it.
    """

    streams: int
    first_s: list[float]
    window_s: float = 0.0
    audio_s: float = 0.0

    def as_json(self) -> dict[str, float]:
        return {
            "streams": self.streams,
            "first_ms_p50": 1000 * statistics.median(self.first_s),
            "first_ms_max": 1000 * max(self.first_s),
            "audio_s_per_s": self.audio_s / self.window_s,
        }


async def closed_loop(stages: Stages, streams: int, frames: int, seconds: float) -> ClosedLoop:
    """The load of `load_tests.loops.runner.run_closed`, without Serve between.

    The first request of each stream is cut to a part of `frames` that differs from stream to
    stream; what counts begins when the last of them has ended and lasts `seconds`.
    """
    loop = ClosedLoop(streams, [])
    rate_hz = stages.spec.speech_decoder.sample_rate_hz
    waiting, counting, full = streams, False, asyncio.Event()

    async def speak(index: int, length: int) -> None:
        began_s, is_first = time.perf_counter(), True
        async with aclosing(stages.speech.speak(request(index, length))) as chunks:
            async for chunk in chunks:
                if counting:
                    loop.audio_s += len(chunk.samples) / rate_hz
                    if is_first:
                        loop.first_s.append(time.perf_counter() - began_s)
                is_first = False

    async def stream(number: int) -> None:
        nonlocal waiting
        await speak(number, max(1, frames * (number + 1) // streams))
        waiting -= 1
        if not waiting:
            full.set()
        for turn in itertools.count(1):
            await speak(turn * streams + number, frames)

    tasks = [asyncio.create_task(stream(number)) for number in range(streams)]
    try:
        filled = asyncio.create_task(full.wait())
        await asyncio.wait([filled, *tasks], return_when=asyncio.FIRST_COMPLETED)
        began_s, counting = time.perf_counter(), filled.done()
        ended, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in ended:
            task.result()
        counting, loop.window_s = False, time.perf_counter() - began_s
    finally:
        for task in (filled, *tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return loop
