"""Processor time of what carries a stream through each Python process, without Serve and sockets.

    python -m load_tests.stages.streaming --streams 16 --requests 320 --chunks 20

The real code of this project between a stand-in for Serve's handle, which yields chunks that exist
already, and a stand-in for what takes them. Each path is measured with a few chunks per request and
with three times as many: the difference is what a chunk takes, the rest what a request takes by
itself. The stand-in's own share, measured alone, is subtracted. Encoders get a voice-like signal,
since silence costs them nothing; a chunk behind the ramp is 0.96 s of it. Beside the processor time
stand what a chunk adds by the clock, of all streams at a time, and how often a thread of the
process was given up for another: what threads that fight for Python's lock cost is seen there.
"""

import argparse
import asyncio
import gc
import json
import logging
import os
import resource
import socket
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import uvloop
from ray.serve._private.common import DeploymentID

from load_tests.reports import circumstances, files
from load_tests.stages.signals import voice_like
from serve_app.config import AppConfig, IngressConfig
from serve_app.deployments.calls import through
from serve_app.deployments.fused import Fused
from serve_app.deployments.ingress import SWITCH_INTERVAL_S
from serve_app.deployments.recorded import of_hop, ray_recorder
from serve_app.deployments.speech_decoder import RemoteTalker, SpeechDecoderDeployment
from serve_app.deployments.talker import TalkerDeployment
from serve_app.fakes import fake_card
from serve_app.http.app import build_api
from serve_app.http.catalog import Catalog
from serve_app.http.health import Status
from serve_app.http.served.application import Application
from serve_app.http.served.models import Models
from serve_app.load.gate import StageLimits, StagePlaces
from serve_app.load.places import Places
from serve_app.load.served import About, Served
from serve_app.models.fused import process
from serve_app.resumption import Policy
from serve_app.scaling.board import Board
from serve_app.types import CodecFrames, NamedVoice, PcmChunk, Prompt, SpeechRequest

_CARD: Final = fake_card(name="tts-1")
_RAMP: Final = (1, 3, 8, 12)
_GROUPS: Final = 16

_VOICE: Final = voice_like(8.0, _CARD.sample_rate_hz)
# Longer than a turn of the event loop, so that each chunk is waited for, as in life.
_PAUSE_S: Final = 0.002

Once = Callable[[int], Awaitable[None]]


def chunks_of(number: int) -> list[PcmChunk]:
    """The chunks of one stream."""
    made, position = [], 0
    for place in range(number):
        frames = _RAMP[min(place, len(_RAMP) - 1)]
        codes = np.zeros((frames, _GROUPS), np.int64)
        samples = np.resize(np.roll(_VOICE, -position), frames * _CARD.samples_per_frame)
        reason = "stop" if place == number - 1 else None
        timings = (("talker", 0.004), ("decode", 0.002), ("stages", 0.007)) if not place else ()
        made.append(PcmChunk(samples, position, codes, reason, timings))
        position += len(samples)
    return made


def frames_of(number: int) -> list[CodecFrames]:
    made, position = [], 0
    for chunk in chunks_of(number):
        made.append(CodecFrames(chunk.codes, position, chunk.finish_reason))
        position += len(chunk.codes)
    return made


class Arrivals:
    """An asynchronous iterator over `items`, one every `_PAUSE_S`."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = iter(items)
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> "Arrivals":
        return self

    async def __anext__(self) -> Any:
        item = next(self._items, None)
        if item is None:
            raise StopAsyncIteration
        arrived = self._loop.create_future()
        self._loop.call_later(_PAUSE_S, _arrive, arrived)
        await arrived
        return item

    def cancel(self) -> None:
        return


def _arrive(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class Handle:
    """In place of Serve's: `speak.remote` and `frames.remote` answer with `items`."""

    deployment_id = DeploymentID("Talker", "tts")

    def __init__(self) -> None:
        self.items: Sequence[Any] = ()
        self.speak = self.frames = self

    def options(self, **_: Any) -> "Handle":
        return self

    def remote(self, *_: Any) -> Arrivals:
        return Arrivals(self.items)

    def _init(self) -> None:
        return


class Way:
    """From an ingress to the stages."""

    voice_encoder: Any = None

    def __init__(self, handle: Any) -> None:
        self.call = through(handle, "speak")
        self._places = Places[str](time.monotonic)
        self._places.set_live(["replica"])

    async def ask(self) -> Served:
        return Served(_CARD, About(StageLimits((("SpeechDecoder", 512),), 64, 5.0)))

    def stage(self, deployment: str, places: int) -> StagePlaces:
        del deployment
        return StagePlaces(lambda: self._places, places)


class Stages:
    """In place of what a process holds: frames and audio that exist already."""

    def __init__(self) -> None:
        self.items: Sequence[Any] = ()

    async def frames(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[CodecFrames, None]:
        async for item in Arrivals(self.items):
            yield item

    async def speak(
        self,
        request: SpeechRequest,
        done: np.ndarray | None = None,
        prompt: Prompt | None = None,
    ) -> AsyncGenerator[PcmChunk, None]:
        async for item in Arrivals(self.items):
            yield item

    async def pcm(
        self, frames: Any, done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        at = 0
        async for item in frames:
            samples = _SAMPLES[: len(item.codes) * _CARD.samples_per_frame]
            yield PcmChunk(samples, at, item.codes, item.finish_reason)
            at += len(samples)

    def close(self) -> None:
        return

    terminate = close


_SAMPLES: Final = np.zeros(max(_RAMP) * _CARD.samples_per_frame, np.int16)


def request() -> SpeechRequest:
    return SpeechRequest("r", _CARD.name, "Hello.", NamedVoice("vivian"), "english", seed=1)


async def through_ingress(fields: dict[str, Any]) -> Once:
    """A request over ASGI, from its headers to the last byte of its body."""
    handle, catalog, recorder = Handle(), Catalog(), ray_recorder()
    config = IngressConfig()
    handle.items = chunks_of(4)
    policy = Policy(config.first_audio_timeout_s, config.chunk_timeout_s, config.resume_timeout_s)
    models = Models(
        catalog, lambda *_: Way(handle), policy, recorder, of_hop(recorder, "ingress"), "tts"
    )
    replicas = {"SpeechDecoder": {"ready": 1, "total": 1}}
    models.follow([Application("tts", "SpeechDecoder", "running", replicas=replicas)])
    while not catalog.cards or models.statuses()[0].state != "healthy":
        await asyncio.sleep(0.01)

    async def status() -> Status:
        return Status("healthy")

    app = build_api(models.speak, catalog, config, status, recorder, look=models.look)
    is_plain = fields == {"response_format": "pcm"}
    body = json.dumps(
        {
            "model": _CARD.name,
            "input": "The quick brown fox jumps over the lazy dog, and then it sleeps.",
            "voice": "vivian",
            "language": "english",
            "seed": 7,
            **fields,
        }
    ).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/audio/speech",
        "raw_path": b"/v1/audio/speech",
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"host", b"127.0.0.1:8000"),
            (b"user-agent", b"OpenAI/Python 2.8.0"),
            (b"accept", b"application/octet-stream"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", b"0123456789abcdef"),
            (b"x-stainless-retry-count", b"0"),
        ],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }

    async def once(number: int) -> None:
        handle.items = chunks_of(number) if len(handle.items) != number else handle.items
        given, size = False, 0

        async def receive() -> dict[str, Any]:
            nonlocal given
            if given:  # a client that stays
                await asyncio.get_running_loop().create_future()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            nonlocal size
            if message["type"] == "http.response.start" and message["status"] != 200:
                raise RuntimeError(f"status {message['status']}")
            size += len(message.get("body", b""))

        await app({**scope}, receive, send)
        if is_plain and size != 2 * sum(len(chunk.samples) for chunk in handle.items):
            raise RuntimeError("not all of the audio")

    return once


async def through_decoder() -> Once:
    """A call of `SpeechDecoder.speak`, which asks a talker; without the decoder itself."""
    handle, config = Handle(), AppConfig()
    deployment: Any = _instance(SpeechDecoderDeployment)
    deployment._board = Board(64)
    deployment._decoder = Stages()
    observe = of_hop(deployment._recorder, "speech_decoder")
    remote: Any = handle
    deployment._talker = RemoteTalker(remote, config, observe)

    async def once(number: int) -> None:
        handle.items = frames_of(number) if len(handle.items) != number else handle.items
        await _drain(deployment.speak(request()))

    return once


async def through_talker() -> Once:
    """A call of `Talker.frames`, without the engine."""
    deployment: Any = _instance(TalkerDeployment)
    stages = deployment._talker = Stages()

    async def once(number: int) -> None:
        stages.items = frames_of(number) if len(stages.items) != number else stages.items
        await _drain(deployment.frames(request()))

    return once


async def through_fused() -> Once:
    """A call of `Fused.speak`, with both ends of the socket to the process of the stages, but
    without these.
    """
    deployment: Any = _instance(Fused)
    deployment._board = Board(64)
    stages = Stages()
    ours, theirs = [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
    server = process._Server(theirs[1])
    server._speech = stages
    serving = asyncio.create_task(server.serve(theirs[0]))
    nobody: Any = stages  # where the process itself would be
    deployment._speech = process.SpeechProcess(nobody, *ours, answer_s=5.0)

    async def once(number: int) -> None:
        assert not serving.done()
        stages.items = chunks_of(number) if len(stages.items) != number else stages.items
        await _drain(deployment.speak(request()))

    return once


async def through_nothing() -> Once:
    """The stand-in alone."""
    handle = Handle()

    async def once(number: int) -> None:
        handle.items = chunks_of(number) if len(handle.items) != number else handle.items
        async for _ in handle.remote():
            pass

    return once


def _instance(deployment: Any) -> Any:
    """A replica's object whose constructor, which loads a model, has not run."""
    kind = deployment.func_or_class
    made = kind.__new__(kind)
    made._recorder = ray_recorder()
    return made


async def _drain(stream: AsyncGenerator[Any, None]) -> None:
    async with aclosing(stream) as items:
        async for _ in items:
            pass


PATHS: Final[dict[str, Callable[[], Awaitable[Once]]]] = {
    "stand-in alone": through_nothing,
    "ingress, pcm": lambda: through_ingress({"response_format": "pcm"}),
    "ingress, wav": lambda: through_ingress({"response_format": "wav"}),
    "ingress, events of pcm": lambda: through_ingress(
        {"response_format": "pcm", "stream_format": "sse"}
    ),
    **{
        f"ingress, {name}": partial(through_ingress, {"response_format": name})
        for name in ("mp3", "opus", "aac", "flac")
    },
    "speech decoder": through_decoder,
    "talker": through_talker,
    "fused, both ends of its socket": through_fused,
}


@dataclass(frozen=True, slots=True)
class Spent:
    """What one request took of the process, all threads: processor time and its share of the time
    by the clock, in us, and how often a thread was given up for another.
    """

    processor_us: float
    clock_us: float
    switches: float


@dataclass(frozen=True, slots=True)
class Row:
    """Medians of the repetitions. Processor time of a whole request, of what it takes beside its
    chunks, and of a chunk, in us; a chunk by the clock, in us, and its switches between threads.
    """

    path: str
    all_us: float
    request_us: float
    chunk_us: float
    chunk_clock_us: float
    chunk_switches: float


async def measure(once: Once, streams: int, requests: int, chunks: int) -> Spent:
    """What one request took, of `requests` with `streams` at a time."""
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            await once(chunks)

    gc.collect()
    before = _used()
    async with asyncio.TaskGroup() as group:
        for _ in range(streams):
            group.create_task(client())
    spent = [(now - then) / requests for now, then in zip(_used(), before, strict=True)]
    return Spent(1e6 * spent[0], 1e6 * spent[1], spent[2])


def _used() -> tuple[float, float, int]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return time.process_time(), time.monotonic(), usage.ru_nvcsw + usage.ru_nivcsw


async def spent(
    make: Callable[[], Awaitable[Once]], streams: int, requests: int, chunks: int, times: int
) -> tuple[Spent, Spent]:
    """What a request of `chunks` chunks takes, and one of three times as many."""
    once = await make()
    await measure(once, streams, 2 * streams, chunks)
    found: list[list[Spent]] = [[], []]
    for _ in range(times):
        for place, number in enumerate((chunks, 3 * chunks)):
            found[place].append(await measure(once, streams, requests, number))
    short, long = (
        Spent(*(statistics.median(values) for values in zip(*map(astuple, each), strict=True)))
        for each in found
    )
    return short, long


def row_of(name: str, found: tuple[Spent, Spent], base: tuple[Spent, Spent], chunks: int) -> Row:
    """`base` is what the stand-in took by itself."""
    short, long = found
    all_us = short.processor_us - base[0].processor_us
    chunk_us = (long.processor_us - base[1].processor_us - all_us) / (2 * chunks)
    return Row(
        name,
        all_us,
        all_us - chunks * chunk_us,
        chunk_us,
        (long.clock_us - short.clock_us) / (2 * chunks),
        (long.switches - short.switches) / (2 * chunks),
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    # Encoders take up to a hundred times what all the rest does.
    costly = [f"ingress, {name}" for name in ("mp3", "opus", "aac", "flac")]
    usual = [name for name in PATHS if name not in costly]
    parser.add_argument("--paths", nargs="+", choices=tuple(PATHS), default=usual)
    parser.add_argument("--streams", type=int, default=16, help="at a time")
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--chunks", type=int, default=20, help="of a request")
    parser.add_argument("--times", type=int, default=3, help="repetitions")
    parser.add_argument("--commit", help="default: git's")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args()


def main() -> None:
    args = parse()
    # As in a replica: lines are made and go to a file.
    logging.basicConfig(level=logging.INFO, filename=os.devnull)
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    def run(name: str) -> tuple[Spent, Spent]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(
                spent(PATHS[name], args.streams, args.requests, args.chunks, args.times)
            )

    rows = []
    base = run("stand-in alone")
    print(f"processor time per request of {args.chunks} chunks, us, without the stand-in's\n")
    print("| path | all | by itself | each chunk | a chunk by the clock | its switches |")
    print("|---|---:|---:|---:|---:|---:|")
    nothing = (Spent(0, 0, 0), Spent(0, 0, 0))
    for name in args.paths:
        is_base = name == "stand-in alone"
        row = row_of(
            name, base if is_base else run(name), nothing if is_base else base, args.chunks
        )
        rows.append(row)
        print(
            f"| {name} | {row.all_us:,.0f} | {row.request_us:,.0f} | {row.chunk_us:,.1f}"
            f" | {row.chunk_clock_us:,.1f} | {row.chunk_switches:,.2f} |",
            flush=True,
        )
    if args.out:
        facts = {**circumstances.environment(args.commit), **vars(args)}
        facts["out"] = str(args.out)
        files.write_json(args.out, {"facts": facts, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
