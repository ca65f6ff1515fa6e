"""A code predictor that answers talkers in other processes."""

import contextlib
import logging
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from serve_app.config import CodePredictorConfig
from serve_app.models.code_predictor.channel.contract import (
    FrameEndpoint,
    gpu_identity,
    node_identity,
)
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.code_predictor.channel.talk import Frames, PredictorBroken, converse
from serve_app.models.late_kernels import late_kernels
from serve_app.models.process_end import OnDeath, end_process
from serve_app.types import Health

_HANDSHAKE_S: Final = 10.0
# A frame takes milliseconds, and talkers try another predictor after four seconds.
_STALL_S: Final = 10.0
# After an attempt to accept a connection that failed.
_ACCEPT_PAUSE_S: Final = 0.1
# Through each of the two ways in; a talker has one.
_MAX_CONNECTIONS: Final = 256

logger = logging.getLogger(__name__)


class FrameServer:
    """Answers frames for any number of talkers, one thread per connection.

    Talkers on this machine come through a Unix socket that only this user can open. A TCP port is
    opened once `endpoint` is asked for by one on another machine.

    Args:
        frames: the predictor; called from one thread at a time.
        host: the address that other machines reach this one by.
        on_death: called when a frame has failed or never ends, with the reason. Such a one cannot
            be trusted after that: a device that failed once fails every frame.
        handshake_s: time in which a peer has to say who it is.
        max_connections: through each of the two ways in.
        stall_s: how long a frame may take.
    """

    def __init__(
        self,
        frames: InProcessFrames,
        host: str = "127.0.0.1",
        on_death: OnDeath = end_process,
        *,
        handshake_s: float = _HANDSHAKE_S,
        max_connections: int = _MAX_CONNECTIONS,
        stall_s: float = _STALL_S,
    ) -> None:
        self.frames = Frames(frames)
        self.threads: set[threading.Thread] = set()
        self._host = host
        self._on_death = on_death
        self._handshake_s = handshake_s
        self._max_connections = max_connections
        self._stall_s = stall_s
        self._lock = threading.Lock()
        # Whoever sees a thread in `threads` sees one that has been started.
        self._starting = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listeners: list[socket.socket] = []
        self._port = 0
        self._is_open = False
        self._failure: Exception | None = None
        self._token = secrets.token_hex(16)
        name = f"tts-frames-{os.getpid()}-{secrets.token_hex(4)}.sock"
        self._path = Path(tempfile.gettempdir(), name)

    @classmethod
    def load(
        cls,
        checkpoint: Any,
        config: CodePredictorConfig,
        device: str,
        host: str = "127.0.0.1",
        on_death: OnDeath = end_process,
    ) -> "FrameServer":
        frames = InProcessFrames.load(checkpoint, config, device)
        frames.capture()
        frames.rehearse()
        return cls(frames, host, on_death)

    @contextlib.contextmanager
    def serve(self) -> Iterator["FrameServer"]:
        """Listen on this machine, and answer until the context is left."""
        local = socket.socket(socket.AF_UNIX)
        local.bind(str(self._path))
        self._path.chmod(0o600)
        self._is_open = True
        try:
            self._listen(local)
            yield self
        finally:
            self._close()
            with self._starting:
                threads = list(self.threads)
            for thread in threads:
                thread.join(10)

    def endpoint(self, node: str | None = None) -> FrameEndpoint:
        """How a talker on `node` (`node_identity`; None: on this one) gets here."""
        here = node_identity()
        if node is not None and node != here:
            with self._lock:
                if self._is_open and not self._port:
                    self._port = self._listen(socket.create_server((self._host, 0)))
        gpu = gpu_identity(self.frames.device)
        return FrameEndpoint(self._host, self._port, str(self._path), here, gpu, self._token)

    def stats(self) -> Mapping[str, float]:
        return {
            "calls": self.frames.calls,
            "rows": self.frames.rows,
            "talkers": len(self._connections),
            "late_kernels": late_kernels.count,
        }

    def health(self) -> Health:
        now_s, last_s = time.monotonic(), self.frames.answered_s
        busy_s = max(0.0, now_s - self.frames.since_s)
        state, reason = "works", ""
        if self._failure is not None:
            state, reason = "failed", f"the code predictor failed: {self._failure!r}"
        elif not self._is_open:
            state, reason = "unavailable", "the frame server is closed"
        # A talker that was killed leaves an event behind that the device waits for for ever.
        elif busy_s > self._stall_s:
            state, reason = "failed", f"a frame has not ended for {self._stall_s:g} s"
            self._on_death(reason)
        return Health(state, reason, busy_s, None if last_s is None else now_s - last_s)

    def _listen(self, listener: socket.socket) -> int:
        """Accept talkers; the port, where there is one."""
        listener.listen()
        self._listeners.append(listener)
        self._spawn(self._accept, listener)
        return listener.getsockname()[1] if listener.family != socket.AF_UNIX else 0

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        def run() -> None:
            try:
                target(*args)
            finally:
                self.threads.discard(thread)

        thread = threading.Thread(target=run, daemon=True, name="frame-server")
        with self._starting:
            self.threads.add(thread)
            thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while self._is_open:
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if not self._is_open:
                    return
                # A peer that has gone already, or no more files for a while: others come later.
                logger.warning("a talker could not be let in: %s", error)
                time.sleep(_ACCEPT_PAUSE_S)
                continue
            same = [c for c in list(self._connections) if c.family == listener.family]
            if len(same) >= self._max_connections:
                logger.warning("%d connections are open: refused another", len(same))
                connection.close()
                continue
            self._connections.add(connection)
            self._spawn(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with torch.inference_mode():
                converse(connection, self.frames, self._token, self._handshake_s)
        except PredictorBroken as broken:
            self._failure = broken.error
            logger.error("a frame failed", exc_info=broken.error)
            self._on_death(f"the code predictor failed: {broken.error!r}")
            # In a process that goes on, talkers learn it from their sockets.
            self._close()
        except OSError as error:
            logger.info("a talker left: %s", error)
        except Exception:
            logger.exception("a talker was refused")
        finally:
            self._connections.discard(connection)
            connection.close()

    def _close(self) -> None:
        with self._lock:
            self._is_open = False
        for each in [*self._listeners, *list(self._connections)]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._path.unlink(missing_ok=True)
