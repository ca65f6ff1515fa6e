"""How many new calls a full replica of `fused` takes, by its processor time.

    python -m load_tests.stages.new_calls --wave 16 --frames 12

A real `SpeechProcess` behind `grpc.aio`, as Serve has it, in one process; a stand-in for the
stages, which sends a chunk to each of `--wave` streams at a time, two waves ahead at most; a client
that makes `--calls` calls at once. A chunk takes `--chunk-us` of the replica's processor time
beside what is ours, as Serve's way to the ingress does. All of it by the processor time of the
event loop's thread: the clock says nothing where cores are shared.
"""

import argparse
import asyncio
import itertools
import multiprocessing
import os
import socket
import subprocess
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio
import numpy as np
import uvloop

from load_tests.servers.child import free_port
from serve_app.models.fused import messages
from serve_app.models.fused.process import SpeechProcess
from serve_app.types import NamedVoice, PcmChunk, SpeechRequest

_SAMPLES_PER_FRAME: Final = 1920
_CODES: Final = 16
_WAVES_AHEAD: Final = 2
_CHANNELS: Final = 8
_ALONE_S: Final = 2.5
_LONGEST_S: Final = 30.0
_REQUEST: Final = SpeechRequest("r", "tiny", "Hello.", NamedVoice("ryan"), "english", seed=1)


@dataclass(frozen=True, slots=True)
class Load:
    """wave, calls: streams, and calls that come at once. chunk_s: processor time."""

    wave: int
    frames: int
    calls: int
    chunk_s: float


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m load_tests.stages.new_calls")
    parser.add_argument("--wave", type=int, default=16, help="streams that get a chunk at once")
    parser.add_argument("--frames", type=int, default=12, help="of a chunk")
    parser.add_argument("--calls", type=int, default=150)
    parser.add_argument("--chunk-us", type=float, default=300.0)
    args = parser.parse_args(arguments)
    load = Load(args.wave, args.frames, args.calls, args.chunk_us / 1e6)
    port, (ours, theirs) = free_port(), socket.socketpair()
    taken_from, taken = os.pipe()
    context = multiprocessing.get_context("fork")
    is_ready = context.Event()
    parts = [
        context.Process(target=_run, args=(_stages, theirs, taken_from, load)),
        context.Process(target=_run, args=(_replica, ours, taken, port, is_ready, load)),
        context.Process(target=_run, args=(_clients, port, is_ready, load)),
    ]
    for part in parts:
        part.start()
    parts[1].join()
    for part in parts:
        part.kill()
        part.join()


def _run(coroutine: Any, *arguments: Any) -> None:
    uvloop.run(coroutine(*arguments))


async def _stages(end: socket.socket, taken_from: int, load: Load) -> None:
    reader, writer = await asyncio.open_connection(sock=end, limit=messages.BUFFER_BYTES)
    numbers = [(await messages.read(reader))[0] for _ in range(load.wave)]
    samples = np.zeros(load.frames * _SAMPLES_PER_FRAME, np.int16)
    chunk = PcmChunk(samples, 0, np.zeros((load.frames, _CODES), np.int64))
    for wave in itertools.count():
        if wave >= _WAVES_AHEAD:
            await asyncio.to_thread(os.read, taken_from, 1)
        for number in numbers:
            messages.write(writer, (number, "item", chunk))
        await writer.drain()


async def _replica(end: socket.socket, taken: int, port: int, is_ready: Any, load: Load) -> None:
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, messages.BUFFER_BYTES)
    connection = await asyncio.open_connection(sock=end, limit=messages.BUFFER_BYTES)
    chunks = 0
    calls: list[tuple[float, int]] = []

    async def stream(speech: SpeechProcess) -> None:
        nonlocal chunks
        async for _ in speech.speak(_REQUEST):
            end_s = time.thread_time() + load.chunk_s
            while time.thread_time() < end_s:
                pass
            chunks += 1
            if chunks % load.wave == 0:
                os.write(taken, b".")

    async def speak(request: bytes, context: Any) -> AsyncGenerator[bytes, None]:
        del request, context
        calls.append((time.thread_time(), chunks))
        await asyncio.sleep(2 * _LONGEST_S)
        yield b""

    with subprocess.Popen(["sleep", "600"]) as process:
        speech = SpeechProcess(process, *connection, answer_s=5.0)
        streams = [asyncio.create_task(stream(speech)) for _ in range(load.wave)]
        server = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(speak)
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("replica", {"speak": handler}),)
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        begin = time.thread_time(), chunks
        await asyncio.sleep(_ALONE_S)
        alone = _rate(begin, (time.thread_time(), chunks))
        is_ready.set()
        last_s = time.monotonic() + _LONGEST_S
        while len(calls) < load.calls and time.monotonic() < last_s:
            await asyncio.sleep(0.05)
        speech.close()
    span_s = calls[-1][0] - calls[0][0]
    print(
        f"waves of {load.wave} chunks of {load.frames} frames, by processor time: {alone:.0f}"
        f" chunks/s alone; {len(calls) / span_s:.0f} new calls/s beside"
        f" {_rate(calls[0], calls[-1]):.0f} chunks/s",
        flush=True,
    )
    del streams
    os._exit(0)


def _rate(before: tuple[float, int], after: tuple[float, int]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])


async def _clients(port: int, is_ready: Any, load: Load) -> None:
    await asyncio.to_thread(is_ready.wait)
    # Connections of their own, as ingresses have.
    own = [("grpc.use_local_subchannel_pool", 1)]
    channels = [
        grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=own) for _ in range(_CHANNELS)
    ]

    async def call(channel: grpc.aio.Channel) -> None:
        with suppress(grpc.aio.AioRpcError):
            async for _ in channel.unary_stream("/replica/speak")(b""):
                pass

    await asyncio.gather(*(call(channels[n % _CHANNELS]) for n in range(load.calls)))


if __name__ == "__main__":
    main()
