"""Talker, code predictor and speech decoder in this process, as in placement `fused`, no Serve."""

import argparse
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from load_tests import report
from serve_app.config import AppConfig, CodePredictorConfig, SpeechDecoderConfig, TalkerConfig
from serve_app.models.checkpoint import Checkpoint, open_checkpoint
from serve_app.models.fused_speech import FusedSpeech
from serve_app.models.random_checkpoint import write_checkpoint
from serve_app.models.spec import ModelSpec
from serve_app.models.talker.engine import VllmTalker
from serve_app.types import SpeechRequest

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
        began_s, before = time.perf_counter(), _used_mib(device)
        speech = FusedSpeech.load(checkpoint, config, device)
        load_s = time.perf_counter() - began_s
        # Measured is what a replica does once it has all of its graphs.
        speech.decoder.runner.wait_until_captured()
        return cls(speech, config, load_s, _used_mib(device) - before)

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
            **report.environment(commit),
            "config_digest": self.config.digest,
            "load_s": self.load_s,
            "load_mib": self.load_mib,
        }


def _used_mib(device: str) -> int:
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


def checkpoint_of(args: argparse.Namespace) -> Checkpoint:
    """Open `args.checkpoint`, or a temporary one; written first where there is none.

    Random weights whose EOS is unreachable: every stream makes the asked number of frames.
    """
    folder = args.checkpoint or Path(tempfile.mkdtemp()) / args.size
    if not folder.exists():
        write_checkpoint(
            folder, size=args.size, variant="custom_voice", eos="unreachable", device=args.device
        )
    return open_checkpoint(folder)


def request(index: int, frames: int) -> SpeechRequest:
    return SpeechRequest(
        f"bench-{index}", "bench", TEXT, "ryan", "english", seed=index, streaming_text=True,
        max_new_tokens=frames,
    )  # fmt: skip


async def drain(stream: AsyncGenerator[Any, None], first: list[float] | None = None) -> None:
    """Read `stream` to its end; its first item's delay in seconds goes to `first`."""
    start = time.perf_counter()
    async with aclosing(stream):
        async for _ in stream:
            if first is not None:
                first.append(time.perf_counter() - start)
                first = None
