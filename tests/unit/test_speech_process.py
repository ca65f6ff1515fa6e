"""The two ends of the process of the stages, as far as they need no model."""

import asyncio
import gc
import pickle
import socket
import subprocess
import sys
import time
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

from serve_app.errors import InvalidRequest
from serve_app.models.fused import messages
from serve_app.models.fused.process import SpeechProcess, _prompt_builder
from serve_app.types import NamedVoice, SpeechRequest
from tests.conftest import TinyCheckpoint

SETTLED = """
import gc, pickle, sys
from serve_app.models.fused import process
kept = [[number] for number in range(50_000)]
process._settle()
seen = {id(item) for item in gc.get_objects()}
sys.stdout.buffer.write(pickle.dumps((gc.isenabled(), gc.get_threshold(), id(kept[0]) in seen)))
"""


def asked(voice: str) -> SpeechRequest:
    return SpeechRequest("r", "tiny", "Hello there.", NamedVoice(voice), "english", seed=3)


def test_the_calling_end_lays_out_prompts(tiny_checkpoint: TinyCheckpoint) -> None:
    builder = _prompt_builder(tiny_checkpoint(), 256)

    async def scenario() -> Any:
        ours, theirs = [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
        with subprocess.Popen(["sleep", "60"]) as process:
            speech = SpeechProcess(process, *ours, 5.0)
            speech._prompts = builder
            with pytest.raises(InvalidRequest, match="nobody"):
                await anext(speech.speak(asked("nobody")))
            async with aclosing(speech.speak(asked("ryan"))) as chunks:
                waiting = asyncio.ensure_future(anext(chunks))
                _, method, arguments = await messages.read(theirs[0])
                waiting.cancel()
                await asyncio.gather(waiting, return_exceptions=True)
            speech.close()
            theirs[1].close()
            await asyncio.gather(speech._receiving, return_exceptions=True)
        return method, arguments, await builder.build(asked("ryan"))

    method, (request, done, prompt), expected = asyncio.run(scenario())
    assert (method, request, done) == ("speak", asked("ryan"), None)
    np.testing.assert_array_equal(prompt.rows, expected.rows)
    assert pickle.dumps(prompt) == pickle.dumps(expected)


def test_chunks_that_come_together_leave_the_loop_to_others_in_between() -> None:
    """One for each of eight streams, of a step: the loop takes new calls between them."""
    streams = 8

    async def scenario() -> list[int]:
        ours, theirs = [await asyncio.open_connection(sock=end) for end in socket.socketpair()]
        passes, seen = 0, []

        async def count() -> None:
            nonlocal passes
            while True:
                passes += 1
                await asyncio.sleep(0)

        async def listen(speech: SpeechProcess) -> None:
            async with aclosing(speech.speak(asked("ryan"))) as chunks:
                await anext(chunks)
                seen.append(passes)

        with subprocess.Popen(["sleep", "60"]) as process:
            speech = SpeechProcess(process, *ours, 5.0)
            listening = [asyncio.create_task(listen(speech)) for _ in range(streams)]
            numbers = [(await messages.read(theirs[0]))[0] for _ in range(streams)]
            together = b"".join(_written((number, "item", "audio")) for number in numbers)
            theirs[1].write(together)
            counting = asyncio.create_task(count())
            await asyncio.gather(*listening)
            counting.cancel()
            speech.close()
            theirs[1].close()
            await asyncio.gather(speech._receiving, return_exceptions=True)
        return seen

    seen = asyncio.run(scenario())
    assert len(set(seen)) == streams


def _written(message: tuple[Any, ...]) -> bytes:
    """`message` as it is sent."""
    sent: list[bytes] = []

    class Writer:
        def write(self, data: bytes) -> None:
            sent.append(data)

    messages.write(Writer(), message)  # pyright: ignore[reportArgumentType]
    return b"".join(sent)


def test_the_called_end_has_room_for_a_step_of_chunks() -> None:
    ours, theirs = socket.socketpair()

    def room() -> int:
        return theirs.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)

    usual, end_s = room(), time.monotonic() + 60
    command = [sys.executable, "-m", "serve_app.models.fused.process", str(theirs.fileno())]
    with ours, theirs, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as process:
        while room() == usual and time.monotonic() < end_s:
            time.sleep(0.02)
        found = room()
        process.kill()
    assert found > usual


def test_what_is_loaded_is_left_out_of_later_collections() -> None:
    done = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, check=True)
    is_enabled, thresholds, is_seen = pickle.loads(done.stdout)
    assert is_enabled
    assert thresholds[0] > gc.get_threshold()[0]
    assert not is_seen
