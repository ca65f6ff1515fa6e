"""A code predictor that answers talkers in other processes."""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from serve_app.config import CodePredictorConfig
from serve_app.errors import StageUnavailable
from serve_app.models.code_predictor.channel.contract import (
    FrameBatch,
    FrameEndpoint,
    gpu_identity,
    node_identity,
)
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.code_predictor.channel.shared_memory import SharedBuffers
from serve_app.models.code_predictor.channel.wire import (
    ERROR,
    FRAME,
    HELLO,
    read_message,
    send,
    split,
    to_bytes,
)

logger = logging.getLogger(__name__)


class FrameServer:
    """Answers frames for any number of talkers; one thread per connection, one frame on the device
    at a time.
    """

    def __init__(self, frames: InProcessFrames) -> None:
        self.frames = frames
        self.lock = threading.Lock()
        self.closing = False
        self.calls = 0
        self.rows = 0
        self.connections: set[socket.socket] = set()
        self.threads: list[threading.Thread] = []
        self.listeners: list[socket.socket] = []
        self.endpoint = self._listen()

    @classmethod
    def load(cls, checkpoint: Any, config: CodePredictorConfig, device: str) -> "FrameServer":
        frames = InProcessFrames.load(checkpoint, config, device)
        frames.capture()
        return cls(frames)

    def _listen(self) -> FrameEndpoint:
        path = os.path.join(
            tempfile.gettempdir(), f"tts-frames-{os.getpid()}-{secrets.token_hex(4)}.sock"
        )
        local = socket.socket(socket.AF_UNIX)
        local.bind(path)
        os.chmod(path, 0o600)
        # Nodes reach each other by the address Ray knows them by; the port is the system's choice.
        remote = socket.socket()
        remote.bind(("0.0.0.0", 0))
        self.listeners = [local, remote]
        host = os.environ.get("RAY_NODE_IP_ADDRESS") or _own_address()
        gpu = gpu_identity(self.frames.predictor.device)
        return FrameEndpoint(host, remote.getsockname()[1], path, node_identity(), gpu)

    def start(self) -> None:
        for listener in self.listeners:
            listener.listen()
            self._spawn(self._accept, listener)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True, name="frame-server")
        thread.start()
        self.threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        while not self.closing:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if connection.family == socket.AF_INET:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with torch.inference_mode():
                self._converse(connection)
        except (ConnectionError, OSError):
            pass
        finally:
            self.connections.discard(connection)
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        predictor = self.frames.predictor
        like = FrameBatch.zeros(
            1, predictor.spec.talker_hidden_size, predictor.dtype, torch.device("cpu")
        )
        shared: SharedBuffers | None = None
        while True:
            kind, rows, payload = read_message(connection)
            try:
                if kind == HELLO:
                    # Handles are pickled: taken from the socket that only this user can open.
                    if payload and connection.family != socket.AF_UNIX:
                        raise ValueError("CUDA IPC handles are accepted over the Unix socket only")
                    shared = (
                        SharedBuffers.open(bytes(payload), predictor.device) if payload else None
                    )
                    send(connection, HELLO, 0, str(predictor.dtype).encode())
                elif shared is not None:
                    self._answer_shared(shared, rows)
                    send(connection, FRAME, rows)
                else:
                    tensors = [t.to(predictor.device) for t in split(payload, like, rows)]
                    with self.lock:
                        codes = self.frames.run(*tensors).to(torch.int16).cpu()
                    send(connection, FRAME, rows, to_bytes(codes))
                self.calls += 1
                self.rows += rows
            except (ConnectionError, OSError):
                raise
            except Exception as error:
                logger.exception("a frame failed")
                send(connection, ERROR, rows, repr(error).encode())

    def _answer_shared(self, shared: "SharedBuffers", rows: int) -> None:
        """Enqueue wait, frame and record; the peer meets us here, not at completion."""
        with self.lock:
            stream = torch.cuda.current_stream()
            stream.wait_event(shared.ready)
            inputs = [t[:rows] for t in shared.batch.tensors()]
            shared.codes[:rows].copy_(self.frames.run(*inputs))
            shared.answered.record(stream)

    def stats(self) -> Mapping[str, float]:
        return {"calls": self.calls, "rows": self.rows, "talkers": len(self.connections)}

    def check_health(self) -> None:
        if self.closing:
            raise StageUnavailable("the frame server is closed")

    def close(self) -> None:
        self.closing = True
        for each in [*self.listeners, *self.connections]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        Path(self.endpoint.unix_path).unlink(missing_ok=True)


def _own_address() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
