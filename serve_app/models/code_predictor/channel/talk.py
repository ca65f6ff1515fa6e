"""One talker's connection, from the side of the predictor."""

import math
import secrets
import socket
import threading
import time
from dataclasses import replace

import torch

from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.code_predictor.channel.shared_memory import MAX_EXPORT_BYTES, SharedBuffers
from serve_app.models.code_predictor.channel.wire import (
    FRAME,
    HELLO,
    BadMessage,
    read_message,
    row_bytes,
    send,
    split,
    to_bytes,
)


class PredictorBroken(Exception):
    """A frame failed that was in order; `error` is what it failed with."""

    def __init__(self, error: Exception) -> None:
        super().__init__(repr(error))
        self.error = error


class Frames:
    """A predictor for several threads: one frame on the device at a time."""

    def __init__(self, frames: InProcessFrames) -> None:
        self.local = frames
        predictor = frames.predictor
        self.device = predictor.device
        self.dtype = predictor.dtype
        self.max_rows = frames.run.max_batch
        width = predictor.spec.talker_hidden_size
        self.like = FrameBatch.zeros(1, width, self.dtype, torch.device("cpu"))
        self.calls = 0
        self.rows = 0
        # When the frame was begun that the device works on; infinite: none.
        self.since_s = math.inf
        # When one was last answered; None: none yet.
        self.answered_s: float | None = None
        self._last_code = len(predictor.code_tables[0]) - 1
        self._lock = threading.Lock()

    def answer(self, batch: FrameBatch) -> bytes:
        """The codes of a batch that came over the socket, int16."""
        with self._lock:
            self.since_s = time.monotonic()
            on_device = FrameBatch(*(t.to(self.device) for t in batch.tensors()))
            codes = to_bytes(self._run(on_device).to(torch.int16))
            self.since_s, self.answered_s = math.inf, time.monotonic()
            return codes

    def answer_shared(self, shared: SharedBuffers, rows: int) -> None:
        """Make the frame; returns when the codes lie in the buffers.

        Not when it is enqueued: a talker's stream would then wait for an event that a predictor
        which is killed meanwhile never reaches, and nothing can end that wait (decision 0002).
        """
        with self._lock:
            self.since_s = time.monotonic()
            stream = torch.cuda.current_stream()
            stream.wait_event(shared.ready)
            batch = FrameBatch(*(t[:rows] for t in shared.batch.tensors()))
            shared.codes[:rows].copy_(self._run(batch))
            shared.answered.record(stream)
            shared.answered.synchronize()
            self.since_s, self.answered_s = math.inf, time.monotonic()

    def _run(self, batch: FrameBatch) -> torch.Tensor:
        self.calls += 1
        self.rows += len(batch.code_0)
        # Whatever comes in must not become an address.
        batch = replace(batch, code_0=batch.code_0.clamp(0, self._last_code))
        return self.local.run(*batch.tensors())


def converse(connection: socket.socket, frames: Frames, token: str, handshake_s: float) -> None:
    """Let one talker in, if it shows `token` in time, and answer its frames until it leaves.

    Raises:
        PredictorBroken: the predictor does not work.
        OSError: the talker has gone, is none, or does not keep to the protocol.
    """
    shared = _let_in(connection, frames, token, time.monotonic() + handshake_s)
    most_bytes = 0 if shared is not None else frames.max_rows * row_bytes(frames.like)
    while True:
        kind, rows, payload = read_message(connection, most_bytes)
        if kind != FRAME or not 0 < rows <= frames.max_rows:
            raise BadMessage(f"kind {kind} with {rows} rows, at most {frames.max_rows} fit")
        if shared is not None and rows > len(shared.codes):
            raise BadMessage(f"{rows} rows in buffers of {len(shared.codes)}")
        batch = split(payload, frames.like, rows) if shared is None else None
        answer = b""
        try:
            if shared is not None:
                frames.answer_shared(shared, rows)
            elif batch is not None:
                answer = frames.answer(batch)
        except Exception as error:
            raise PredictorBroken(error) from error
        send(connection, FRAME, rows, answer)


def _let_in(
    connection: socket.socket, frames: Frames, token: str, until_s: float
) -> SharedBuffers | None:
    """Read the first message and answer it; buffers where the talker shares some."""
    is_local = connection.family == socket.AF_UNIX
    # Handles are pickled: taken from the socket that only this user can open.
    most_bytes = len(token) + (MAX_EXPORT_BYTES if is_local else 0)
    kind, _, payload = read_message(connection, most_bytes, until_s)
    shown, handles = bytes(payload[: len(token)]), bytes(payload[len(token) :])
    if kind != HELLO or not secrets.compare_digest(shown, token.encode()):
        raise BadMessage("a peer without the token")
    connection.settimeout(None)
    if not is_local:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    shared = SharedBuffers.open(handles, frames.device) if handles else None
    send(connection, HELLO, frames.max_rows, str(frames.dtype).encode())
    return shared
