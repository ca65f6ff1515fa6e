"""Ready means ready: a start meets only kernels that the lists name, a request none that is new.

Each stage has a process of its own where it has one in a server: a kernel that one of them has met
is new to the others. `TTS_GPU_SIZES` names the sizes of the checkpoints ("0.6b,1.7b"); default:
0.6b.
"""

import asyncio
import dataclasses
import os
import pickle
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.config import AppConfig
from serve_app.models import split
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.contract import FrameEndpoint
from serve_app.models.fused.speech import FusedSpeech
from serve_app.models.kernel_cache.record import recording
from serve_app.models.kernel_cache.variants import known
from serve_app.models.late_kernels import late_kernels
from serve_app.models.random_checkpoint.write import write_checkpoint
from serve_app.types import CodecFrames
from tests.gpu.apart import Apart, fail_on_late_kernels
from tests.parity.engines import request

SIZES = os.environ.get("TTS_GPU_SIZES", "0.6b").split(",")
FUSED = AppConfig(placement="fused", device="cuda")
SPLIT = AppConfig(placement="split", device="cuda")
# Streams at once; none of these numbers but 16 and 64 is one of the rehearsal's.
BURSTS = (1, 3, 16, 7, 64, 33, 2, 48, 5)

Stream = Callable[[int, int, int], AsyncGenerator[Any, None]]


class Kernels:
    """What a stage met: `unknown` to the lists while it started, `late` after it was ready."""

    def __init__(self) -> None:
        self.unknown: list[str] = []
        self.late = 0

    def is_ready(self) -> None:
        fail_on_late_kernels()


@contextmanager
def kernels() -> Iterator[Kernels]:
    found, lists = Kernels(), set(known())
    with recording() as met:
        yield found
    found.unknown = sorted(f"{v.module}.{v.name}" for v in met - lists)
    found.late = late_kernels.count


def load(stream: Stream) -> None:
    """Bursts of streams; one is told the size of its burst, its number, and some frames."""
    rng = np.random.default_rng(7)

    async def burst(count: int) -> None:
        frames = int(rng.integers(3, 40))

        async def one(index: int) -> None:
            async with aclosing(stream(count, index, frames)) as items:
                async for _ in items:
                    pass

        await asyncio.gather(*map(one, range(count)))

    for count in BURSTS:
        asyncio.run(burst(count))


def spoken(speak: Callable[..., AsyncGenerator[Any, None]]) -> Stream:
    """Requests; every third one goes on from half of its frames."""

    def stream(count: int, index: int, frames: int) -> AsyncGenerator[Any, None]:
        words = np.random.default_rng((count, index)).integers(1, 120)
        asked = request("word " * int(words), seed=index, max_new_tokens=frames)
        asked = dataclasses.replace(asked, request_id=f"r{count}-{index}")
        done = np.zeros((frames // 2, 16), np.int64) if index % 3 == 2 else None
        return speak(asked, done)

    return stream


def fused(folder: Path) -> Kernels:
    with kernels() as found:
        speech = FusedSpeech.load(open_checkpoint(folder), FUSED, "cuda")
        speech.decoder.runner.wait_until_captured()
        found.is_ready()
        load(spoken(speech.speak))
    return found


class Meeting:
    """Where a talker finds the code predictor of another process: `FrameSessions`, in a folder."""

    is_over = False

    def __init__(self, folder: Path) -> None:
        self._endpoint, self._end = folder / "endpoint", folder / "end"

    def connect(self, node: str) -> FrameEndpoint:
        while not self._endpoint.exists():
            time.sleep(0.05)
        return pickle.loads(self._endpoint.read_bytes())

    def tell(self, endpoint: FrameEndpoint) -> None:
        part = self._endpoint.with_suffix(".part")
        part.write_bytes(pickle.dumps(endpoint))
        part.rename(self._endpoint)

    def end(self) -> None:
        self._end.touch()

    def wait(self) -> None:
        while not self._end.exists():
            time.sleep(0.05)


def predictor(folder: Path, meeting: Meeting) -> Kernels:
    with kernels() as found:
        server = split.ready_predictor(open_checkpoint(folder), SPLIT, "cuda")
        with server.serve():
            found.is_ready()
            meeting.tell(server.endpoint())
            meeting.wait()
    return found


def talker(folder: Path, meeting: Meeting) -> Kernels:
    with kernels() as found:
        engine = split.ready_talker(open_checkpoint(folder), SPLIT, "cuda", meeting)
        found.is_ready()
        load(spoken(engine.frames))
        assert engine.predictor.transport == "cuda_ipc"
    return found


def decoder(folder: Path) -> Kernels:
    with kernels() as found:
        stage = split.ready_decoder(open_checkpoint(folder), SPLIT, "cuda")
        stage.runner.wait_until_captured()
        found.is_ready()

        async def items(length: int, frames: int) -> AsyncGenerator[CodecFrames, None]:
            for first in range(0, frames, length):
                count = min(length, frames - first)
                codes = np.zeros((count, 16), np.int64)
                yield CodecFrames(codes, first, "stop" if first + count == frames else None)

        def stream(count: int, index: int, frames: int) -> AsyncGenerator[Any, None]:
            done = np.zeros((frames // 2, 16), np.int64) if index % 3 == 2 else None
            return stage.pcm(items(1 + index % 13, frames), done)

        load(stream)
    return found


@pytest.fixture(scope="module", params=SIZES)
def folder(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("full") / request.param
    write_checkpoint(
        path, size=request.param, variant="custom_voice", eos="unreachable", device="cuda"
    )
    return path


def assert_ready(found: Kernels) -> None:
    assert found.late == 0
    assert not found.unknown, "record the lists again (docs/start.md)"


def test_fused_meets_no_kernel_late_and_none_that_no_list_has(folder) -> None:
    assert_ready(Apart(fused, folder).result())


def test_stages_of_split_meet_no_kernel_late_and_none_that_no_list_has(folder, tmp_path) -> None:
    meeting = Meeting(tmp_path)
    predicting = Apart(predictor, folder, meeting)
    decoding = Apart(decoder, folder)
    talking = Apart(talker, folder, meeting)
    try:
        assert_ready(talking.result())
        assert_ready(decoding.result())
    finally:
        meeting.end()
    assert_ready(predicting.result())
