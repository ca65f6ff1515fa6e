"""A stage that cannot work any more takes its process with it, and says why."""

import asyncio
import socket
import struct
import subprocess
import sys

from serve_app.models.fused.process import SpeechProcess
from serve_app.models.process_end import EXIT_STATUS

BROKEN_THREAD = """
import logging, logging.handlers, threading, time
from serve_app.models.process_end import end_process

# As Serve's, which holds lines back until there are many.
logging.getLogger().addHandler(logging.handlers.MemoryHandler(100, target=logging.StreamHandler()))

def work():
    try:
        raise RuntimeError("the device is lost")
    except RuntimeError:
        end_process("the engine died")

threading.Thread(target=work).start()
time.sleep(600)
"""


def test_a_broken_thread_ends_the_process_and_leaves_its_reason_in_the_log() -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_THREAD], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == EXIT_STATUS
    assert "the engine died: this process ends" in done.stderr
    assert "RuntimeError: the device is lost" in done.stderr


def test_what_is_no_message_of_the_stages_process_ends_its_replica_as_well() -> None:
    async def scenario() -> list[str]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        ended: list[str] = []
        with subprocess.Popen(["sleep", "60"]) as process, theirs:
            speech = SpeechProcess(process, reader, writer, 5.0)
            speech._on_death = ended.append
            theirs.sendall(struct.pack("<II", 4, 0) + b"what")
            await asyncio.gather(speech._receiving, return_exceptions=True)
            speech.close()
        return ended

    (reason,) = asyncio.run(scenario())
    assert reason.startswith("the process of the stages is lost")
