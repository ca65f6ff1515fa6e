"""`python -m load_tests.servers.fake PORT [SECONDS [PLACES]]`: the HTTP application around stages
that only wait, SECONDS for each frame, with so many PLACES behind an ingress's gate.

What it costs is what the ingress costs: text, encoders, buffers, connections. It runs on no Ray.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import uvicorn

from load_tests.servers.child import REPOSITORY, free_port, search_path, start_server, stop_server
from load_tests.servers.server import not_ready
from serve_app.config import IngressConfig, TalkerConfig
from serve_app.errors import StageFailed
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, fake_card
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import Status
from serve_app.load.admission import Admission
from serve_app.load.gate import Gate, StagePlaces
from serve_app.load.places import Places
from serve_app.pipeline import synthesize
from serve_app.resumption import Resumable, Speak
from serve_app.types import PcmChunk, SpeechRequest

_NUM_FRAMES: Final = 60
# Of every request, at the usual speed.
AUDIO_S: Final = _NUM_FRAMES * 0.08
# Of a text with this in it the stages fail in the middle.
BREAKS: Final = "breaks off"
# An eighth of real time.
_FRAME_S: Final = 0.01
_CHUNK_FRAMES: Final = (1, 3, 8, 12)
# As configs/*.yaml have it.
_KEEP_ALIVE_S: Final = 130
_START_S: Final = 60.0


def main(port: int, frame_s: float = _FRAME_S, places: int = 0) -> None:
    failure = StageFailed("broken on request")
    talkers = [
        FakeTalker(
            _NUM_FRAMES, frame_s=frame_s, chunk_frames=_CHUNK_FRAMES, fail_at=at, error=failure
        )
        for at in (None, _NUM_FRAMES // 2)
    ]
    decoder = FakeSpeechDecoder()

    def made(request: SpeechRequest, done: np.ndarray | None) -> AsyncGenerator[PcmChunk, None]:
        return synthesize(talkers[BREAKS in request.text], decoder, request, done)

    speak, look = gated(made, places) if places else (partial(made, done=None), _let_all_in)

    async def status() -> Status:
        return Status("healthy")

    app = build_api(speak, Catalog((fake_card(),)), IngressConfig(), status, look=look)
    uvicorn.run(
        app, host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=_KEEP_ALIVE_S
    )


def gated(call: Resumable[PcmChunk], places: int) -> tuple[Speak, Callable[[int], None]]:
    """`call` before which one waits for a place, behind the gate of its only ingress, and what that
    one refuses by.
    """
    free, live, settings = asyncio.Semaphore(places), Places[str](time.monotonic), TalkerConfig()
    live.set_live(["fake"])
    gate = Gate(
        [StagePlaces(lambda: live, places)],
        Admission(settings.max_queued, settings.max_wait_s),
        model=fake_card().name,
    )

    async def placed(
        request: SpeechRequest, done: np.ndarray | None
    ) -> AsyncGenerator[PcmChunk, None]:
        async with free, aclosing(call(request, done)) as chunks:
            async for chunk in chunks:
                yield chunk

    passed = gate.into(placed)
    return lambda request: passed(request, None), gate.look


def _let_all_in(priority: int) -> None:
    del priority


@contextmanager
def fake_server(
    port: int, frame_s: float = _FRAME_S, places: int = 0
) -> Iterator["subprocess.Popen[bytes]"]:
    """One in a process of its own, ready, on the loopback interface; `places` as of `main`."""
    options = (str(port), str(frame_s), str(places))
    command = [sys.executable, "-m", "load_tests.servers.fake", *options]
    with tempfile.TemporaryDirectory(prefix="tts-fake-") as folder:
        log = Path(folder) / "server.log"
        process = start_server(
            command, log, {**os.environ, "PYTHONPATH": search_path()}, REPOSITORY
        )
        try:
            end_s = time.monotonic() + _START_S
            while not_ready(f"http://127.0.0.1:{port}/ready"):
                if process.poll() is not None or time.monotonic() > end_s:
                    raise RuntimeError(f"no server: {log.read_text(errors='replace')[-2000:]}")
                time.sleep(0.1)
            yield process
        finally:
            stop_server(process, lambda: [], 10.0)


@contextmanager
def running_or_fake(url: str | None) -> Iterator[tuple[str, bool]]:
    """The address of the server at `url`, or of a fake one where there is no URL, and whether it is
    that.
    """
    if url:
        yield url.rstrip("/").removesuffix("/v1"), False
        return
    port = free_port()
    with fake_server(port):
        yield f"http://127.0.0.1:{port}", True


if __name__ == "__main__":
    port, *rest = sys.argv[1:]
    main(
        int(port),
        float(rest[0]) if rest else _FRAME_S,
        int(rest[1]) if len(rest) > 1 else 0,
    )
