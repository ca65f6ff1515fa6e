"""A server without a model: what the clients can receive at most.

Answers each request with as many samples as it asks for, in the pieces that the real server sends,
as fast as they are taken. Several processes share its port.
"""

import asyncio
import json
import multiprocessing
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from load_tests.loops.client import AudioShape
from load_tests.loops.runner import run_loop

_RAMP: Final = (1, 3, 8, 12)
# A tenth of a second apart: interpreters start late beside others.
_START_TRIES: Final = 900
_HEAD: Final = b"HTTP/1.1 200 OK\r\nContent-Type: audio/pcm\r\nTransfer-Encoding: chunked\r\n\r\n"
_FRAME: Final = bytes(2 * AudioShape().samples_per_frame)


@contextmanager
def empty_server(processes: int) -> Iterator[str]:
    """The URL of one; ends it."""
    with _listening(0) as reserved:
        port = reserved.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        workers = [context.Process(target=_serve, args=(port,)) for _ in range(processes)]
        for worker in workers:
            worker.start()
        try:
            for _ in range(processes):
                _wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            for worker in workers:
                worker.terminate()
                worker.join(10)


def pieces(num_frames: int) -> Iterator[int]:
    """How many frames each piece of a body has."""
    for number in range(num_frames):
        size = min(_RAMP[min(number, len(_RAMP) - 1)], num_frames)
        if not size:
            return
        yield size
        num_frames -= size


def _listening(port: int) -> socket.socket:
    """Bound, not yet accepting; others may bind the same port."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    made.bind(("127.0.0.1", port))
    return made


def _wait_for(port: int) -> None:
    for _ in range(_START_TRIES):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("the empty server does not start")


def _serve(port: int) -> None:
    run_loop(lambda: _accept(port))


async def _accept(port: int) -> None:
    server = await asyncio.start_server(_answer, sock=_listening(port), backlog=2048)
    async with server:
        await server.serve_forever()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = next(
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            )
            asked = json.loads(await reader.readexactly(length))
            writer.write(_HEAD)
            for size in pieces(asked.get("max_new_tokens", 60)):
                body = _FRAME * size
                writer.write(b"%x\r\n" % len(body) + body + b"\r\n")
                await writer.drain()
            writer.write(b"0\r\n\r\n")
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
