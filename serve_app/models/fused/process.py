"""`FusedSpeech` in a process of its own, so that it shares no interpreter with whoever calls it.

The engine's thread holds the interpreter lock for most of a step. What else a Serve replica does,
receiving requests, laying out their prompts and passing chunks on, would wait for it and hold it up
in turn.

Both ends of a socket pair speak `messages`: a call is (number, method, arguments), an answer
(number, kind, value) with kind `item`, `end` or `error`. When either end goes, the other one knows
by the end of the stream.
"""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from serve_app.config import AppConfig
from serve_app.errors import CheckpointError, SpeechError, StageFailed, StageUnavailable
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.text_tokenizer import TextTokenizer
from serve_app.models.fused import messages
from serve_app.models.fused.standby import Taken, take
from serve_app.models.process_end import OnDeath, end_process
from serve_app.models.start_times import start_times
from serve_app.models.talker.prompt import PromptBuilder
from serve_app.types import Health, PcmChunk, SpeechRequest

_ITEM, _END, _ERROR = "item", "end", "error"
_PR_SET_PDEATHSIG: Final = 1
# Its event loop answers between the steps of the engine, within milliseconds. Streams of one that
# hangs are silent until it is killed.
_ANSWER_S: Final = 5.0
_WATCH_S: Final = 1.0
# New objects between two collections of garbage: streams come and go by the thousand without any.
_COLLECTED: Final = 10_000

logger = logging.getLogger(__name__)


class SpeechProcess:
    """The calling end; belongs to the event loop that started it.

    Started by `start`; every method but `health` fails with StageUnavailable once the process is
    gone. Nobody should be there to see it: `on_death` ends the calling process as well, or it would
    refuse requests faster than any healthy one answers them.
    """

    def __init__(
        self,
        process: "subprocess.Popen[bytes] | Taken",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answer_s: float,
    ) -> None:
        self._process = process
        self._answer_s = answer_s
        self._writer = writer
        self._calls: dict[int, asyncio.Queue[tuple[str, Any]]] = {}
        self._number = 0
        self._gone = False
        self._heard_s = time.monotonic()
        self._on_death: OnDeath | None = None
        # None: the stages lay out prompts themselves.
        self._prompts: PromptBuilder | None = None
        # What its start took: seconds of each part.
        self.start_parts: Mapping[str, float] = {}
        self._watching: asyncio.Task[None] | None = None
        self._receiving = asyncio.create_task(self._receive(reader))

    @classmethod
    async def start(
        cls,
        folder: Path,
        config: AppConfig,
        device: str,
        on_death: OnDeath = end_process,
        standbys: Path | None = None,
        answer_s: float = _ANSWER_S,
    ) -> "SpeechProcess":
        """Start the process and load the stages; returns when they can serve.

        Args:
            folder: the checkpoint.
            config: of the application.
            device: auto, cuda or cpu.
            on_death: called with the reason when the process is lost after this has returned.
            standbys: folder in which a process may wait that has done its imports.
            answer_s: how long it may say nothing when it was asked how it is; then it is killed.

        Raises:
            CheckpointError, SpeechError: as `FusedSpeech.load`.
        """
        began_s = time.monotonic()
        taken = standbys and await asyncio.to_thread(take, standbys)
        ours, process = taken or _child()
        reader, writer = await asyncio.open_connection(sock=ours, limit=messages.BUFFER_BYTES)
        speech = cls(process, reader, writer, answer_s)
        try:
            parts, speech._prompts = await asyncio.gather(
                speech._ask("load", folder, config, device),
                asyncio.to_thread(_prompt_builder, folder, config.talker.max_model_len),
            )
        except BaseException:
            speech.close()
            raise
        which = "standby" if taken else "process"
        # Of a process of its own, most is its imports, before it hears of anything.
        speech.start_parts = {which: time.monotonic() - began_s - sum(parts.values()), **parts}
        speech._on_death = on_death
        speech._watching = asyncio.create_task(speech._watch())
        return speech

    async def speak(
        self, request: SpeechRequest, done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """See `FusedSpeech.speak`; also raises StageUnavailable when the process is lost."""
        prompt = None if self._prompts is None else await self._prompts.build(request)
        async with aclosing(self._call("speak", request, done, prompt)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def stats(self) -> dict[str, Mapping[str, float]]:
        return await self._ask("stats")

    async def health(self) -> Health:
        """Of the stages; a process that does not answer is killed, which is its death."""
        asked_s = time.monotonic()
        try:
            async with asyncio.timeout(self._answer_s):
                return await self._ask("health")
        except StageUnavailable as error:
            return Health("unavailable", str(error))
        except TimeoutError:
            if self._heard_s > asked_s:
                return Health("works", "slow to answer", self._answer_s)
            reason = f"the process of the stages did not answer for {self._answer_s:g} s"
            logger.error("%s: killed", reason)
            self._process.kill()
            return Health("unavailable", reason, self._answer_s)

    async def _watch(self) -> None:
        """Find a process that hangs sooner than Serve's health checks do."""
        while not self._gone:
            await asyncio.sleep(_WATCH_S)
            with suppress(SpeechError):  # it answers
                await self.health()

    def close(self) -> None:
        """End the process; what still runs fails with StageUnavailable."""
        self._gone = True
        if self._watching is not None:
            self._watching.cancel()
        self._process.terminate()

    async def _ask(self, method: str, *arguments: Any) -> Any:
        """Call a method that answers once."""
        async with aclosing(self._call(method, *arguments)) as answers:
            async for answer in answers:
                return answer
        return None

    async def _call(self, method: str, *arguments: Any) -> AsyncGenerator[Any, None]:
        if self._gone:
            raise StageUnavailable("the process of the stages is gone")
        self._number += 1
        number, answers = self._number, asyncio.Queue[tuple[str, Any]]()
        self._calls[number] = answers
        ended = False
        try:
            messages.write(self._writer, (number, method, arguments))
            while True:
                kind, value = await answers.get()
                ended = kind != _ITEM
                if kind == _ERROR:
                    raise value
                if kind == _END:
                    return
                yield value
        finally:
            del self._calls[number]
            if not ended and not self._gone:
                messages.write(self._writer, (number, None, ()))

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, kind, value = await messages.read(reader)
                self._heard_s = time.monotonic()
                answers = self._calls.get(number)
                if answers is not None:  # else its caller has gone
                    answers.put_nowait((kind, value))
                # What came with it waits for the next pass of the loop. Serve's gRPC server takes
                # a new call every few passes, and one with all chunks of a step lasts for
                # milliseconds: new requests would wait (decision 6).
                await asyncio.sleep(0)
        except Exception as error:  # the end, or what is no message: nothing after it could be one
            if not self._gone and self._on_death is not None:
                status = self._process.poll()
                self._on_death(f"the process of the stages is lost ({status}): {error}")
        finally:
            self._gone = True
            self._writer.close()
            for answers in self._calls.values():
                answers.put_nowait((_ERROR, StageUnavailable("the process of the stages is gone")))


def _prompt_builder(folder: Path, max_model_len: int) -> PromptBuilder:
    return PromptBuilder(read_spec(folder), TextTokenizer.from_dir(folder), max_model_len)


def _child() -> "tuple[socket.socket, subprocess.Popen[bytes]]":
    """Start the process anew."""
    ours, theirs = socket.socketpair()
    # A Ray worker extends its path after it has started; the child must find the same modules.
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
        )
    return ours, process


class _Server:
    """The called end."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._speech: Any = None
        self._tasks: dict[int, asyncio.Task[None]] = {}

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer calls until the other end is gone."""
        while True:
            number, method, arguments = await messages.read(reader)
            if method is None:
                task = self._tasks.get(number)
                if task is not None:
                    task.cancel()
                continue
            task = asyncio.create_task(self._answer(number, method, arguments))
            self._tasks[number] = task
            task.add_done_callback(lambda _, number=number: self._tasks.pop(number))

    async def _answer(self, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            if method == "speak":
                async with aclosing(self._speech.speak(*arguments)) as chunks:
                    async for chunk in chunks:
                        messages.write(self._writer, (number, _ITEM, chunk))
            elif method == "load":
                self._speech = await asyncio.to_thread(_load, *arguments)
                messages.write(self._writer, (number, _ITEM, start_times.parts))
            else:
                messages.write(self._writer, (number, _ITEM, getattr(self._speech, method)()))
            messages.write(self._writer, (number, _END, None))
        except (SpeechError, CheckpointError) as error:
            messages.write(self._writer, (number, _ERROR, error))
        except Exception as error:
            logger.exception("%s failed", method)
            failed = StageFailed(f"{type(error).__name__} in a stage: {error}")
            messages.write(self._writer, (number, _ERROR, failed))


def _load(folder: Path, config: AppConfig, device: str) -> Any:
    start_times.begin()
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.fused.speech import FusedSpeech

    speech = FusedSpeech.load(open_checkpoint(folder), config, device)
    _settle()
    return speech


def _settle() -> None:
    """Leave what is loaded by now, and stays, out of all later collections of garbage.

    They hold Python's lock, and with it every stream.
    """
    gc.collect()
    gc.freeze()
    _, *older = gc.get_threshold()
    gc.set_threshold(_COLLECTED, *older)


def _end_with_parent() -> None:
    """Have Linux kill this process when the thread that started it ends, which is its event loop's.

    The end of the socket says the same, but only to an event loop that still runs.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def serve(connection: socket.socket) -> None:
    """Answer the calls that come over `connection`; ends this process when the caller is gone."""
    with asyncio.Runner(loop_factory=_new_event_loop) as runner:
        runner.run(_main(connection))


async def _main(connection: socket.socket) -> None:
    # A step's chunks at once; else the event loop comes back for what had no room. As far as the
    # system lets it.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, messages.BUFFER_BYTES)
    reader, writer = await asyncio.open_connection(sock=connection, limit=messages.BUFFER_BYTES)
    try:
        await _Server(writer).serve(reader)
    except EOFError:
        # At once: nobody waits for anything any more, and vLLM's own end may hang.
        os._exit(0)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """The faster loop where it is installed, as it is wherever Serve is, except on Windows."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


if __name__ == "__main__":
    _end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s -- %(message)s")
    serve(socket.socket(fileno=int(sys.argv[1])))
