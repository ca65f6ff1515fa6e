"""A code predictor in another process, as the talker calls it.

Messages go over a Unix socket on the same node, over TCP elsewhere; the tensors go through CUDA IPC
buffers where both sides see one GPU, else through the socket. A predictor keeps nothing between
frames, so a call that fails with its peer is sent again to another one and gives the same codes.
"""

import logging
import math
import socket
import time
import uuid
from typing import Final

import torch
from torch import Tensor

from serve_app.errors import StageFailed
from serve_app.models.code_predictor.channel.contract import (
    FrameBatch,
    FrameEndpoint,
    FrameSessions,
    gpu_identity,
    node_identity,
)
from serve_app.models.code_predictor.channel.shared_memory import SharedBuffers
from serve_app.models.code_predictor.channel.wire import (
    FRAME,
    HELLO,
    BadMessage,
    read_message,
    send,
    to_bytes,
)

# A frame takes milliseconds. Longer than it takes to learn that a predictor does not answer, and to
# open a session with another one (load/routing.py): the next attempt finds that one.
_CALL_TIMEOUT_S: Final = 4.0
_ATTEMPTS: Final = 5
_MAX_HELLO_BYTES: Final = 64
_CODE_BYTES: Final = 2

logger = logging.getLogger(__name__)


class RemoteFrames:
    """A code predictor in another process, replaced by another one when it dies.

    Args:
        sessions: names predictors; called from the thread that calls `predict`, first on the first
            frame, again after every failure, and when the session is over.
        num_code_groups: Q of the checkpoint.
        max_rows: largest batch.
        channel: `CodePredictorConfig.channel`.
    """

    def __init__(
        self,
        sessions: FrameSessions,
        num_code_groups: int = 16,
        max_rows: int = 256,
        channel: str = "auto",
    ) -> None:
        self.reached_s = -math.inf
        self.transport = "none"
        self.reconnects = -1
        self._sessions = sessions
        self._groups = num_code_groups - 1
        self._max_rows = max_rows
        self._channel = channel
        self._token: str | None = None
        self._connection: socket.socket | None = None
        self._shared: SharedBuffers | None = None
        self._peer_dtype = torch.float32
        # Token of a predictor that seems to be here and whose socket is not.
        self._apart: str | None = None

    def predict(self, batch: FrameBatch) -> Tensor:
        for attempt in range(_ATTEMPTS):
            try:
                if self._connection is None or self._sessions.is_over:
                    self._reach(batch)
                return self._call(batch)
            except OSError as error:
                logger.warning("code predictor lost (%s), attempt %d", error, attempt + 1)
                self.close()
                time.sleep(0.1 * attempt)
        raise StageFailed(f"no code predictor answered in {_ATTEMPTS} attempts")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._shared = self._token = None

    def _reach(self, batch: FrameBatch) -> None:
        # Another container may look like this one; it opens its port to what is elsewhere.
        node = node_identity() if self._apart is None else uuid.uuid4().hex
        self.reached_s = math.inf
        try:
            endpoint = self._sessions.connect(node)
        finally:
            self.reached_s = time.monotonic()
        if self._connection is not None and endpoint.token == self._token:
            return
        self.close()
        try:
            self._open(endpoint, batch)
        except BaseException:
            self.close()
            raise
        self.reconnects += 1

    def _open(self, endpoint: FrameEndpoint, batch: FrameBatch) -> None:
        same_node = endpoint.node == node_identity() and endpoint.token != self._apart
        device = batch.hidden.device
        same_gpu = same_node and endpoint.gpu is not None and endpoint.gpu == gpu_identity(device)
        if self._channel == "cuda_ipc" and not same_gpu:
            raise StageFailed("channel cuda_ipc needs talker and code predictor on one GPU")
        self._connection = connection = self._connected(endpoint, same_node)
        handles = b""
        if same_gpu and self._channel != "socket":
            self._shared = SharedBuffers.create(self._max_rows, self._groups, batch)
            handles = self._shared.export()
        send(connection, HELLO, 0, endpoint.token.encode(), handles)
        kind, rows, answer = read_message(connection, _MAX_HELLO_BYTES)
        if kind != HELLO:
            raise BadMessage(f"code predictor began with a message of kind {kind}")
        if rows < self._max_rows:
            raise StageFailed(
                f"the talker has up to {self._max_rows} rows (max_num_seqs), the code predictor"
                f" takes {rows} (the largest of its batch_sizes)"
            )
        self._peer_dtype = getattr(torch, bytes(answer).decode().removeprefix("torch."))
        self._token = endpoint.token
        self.transport = "cuda_ipc" if self._shared else ("unix" if same_node else "tcp")
        logger.info("code predictor reached over %s at %s", self.transport, endpoint)

    def _connected(self, endpoint: FrameEndpoint, same_node: bool) -> socket.socket:
        if not same_node:
            address = (endpoint.host, endpoint.port)
            connection = socket.create_connection(address, _CALL_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_CALL_TIMEOUT_S)
        try:
            connection.connect(endpoint.unix_path)
        except OSError as error:
            connection.close()
            if isinstance(error, FileNotFoundError):
                self._apart = endpoint.token
            raise
        return connection

    def _call(self, batch: FrameBatch) -> Tensor:
        assert self._connection is not None
        rows = len(batch.code_0)
        if self._shared is not None:
            self._shared.hand_over(batch)
            send(self._connection, FRAME, rows)
            self._answer(self._connection, rows, 0)
            return self._shared.take_back(rows)
        hidden = batch.hidden.to(self._peer_dtype)
        columns = [to_bytes(t) for t in (hidden, *batch.tensors()[1:])]
        send(self._connection, FRAME, rows, *columns)
        payload = self._answer(self._connection, rows, rows * self._groups * _CODE_BYTES)
        codes = torch.frombuffer(payload, dtype=torch.int16).view(rows, -1)
        return codes.to(batch.hidden.device, torch.int64)

    @staticmethod
    def _answer(connection: socket.socket, rows: int, num_bytes: int) -> bytearray:
        kind, answered, payload = read_message(connection, num_bytes)
        if kind != FRAME or answered != rows or len(payload) != num_bytes:
            raise BadMessage("code predictor answered out of order")
        return payload
