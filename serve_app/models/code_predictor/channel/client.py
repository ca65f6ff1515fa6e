"""A code predictor in another process, as the talker calls it.

Messages go over a Unix socket on the same node, over TCP elsewhere; the tensors go through CUDA IPC
buffers where both sides see one GPU, else through the socket. A predictor keeps nothing between
frames, so a call that fails with its peer is sent again to another one and gives the same codes.
"""

import logging
import math
import socket
import time
from collections.abc import Callable

import torch
from torch import Tensor

from serve_app.errors import StageFailed
from serve_app.models.code_predictor.channel.contract import (
    FrameBatch,
    FrameEndpoint,
    gpu_identity,
    node_identity,
)
from serve_app.models.code_predictor.channel.shared_memory import SharedBuffers
from serve_app.models.code_predictor.channel.wire import (
    ERROR,
    FRAME,
    HELLO,
    read_message,
    send,
    to_bytes,
)

_CALL_TIMEOUT_S = 10.0
_RETRIES = 5

logger = logging.getLogger(__name__)


class RemoteFrames:
    """A code predictor in another process, replaced by another one when it dies.

    Args:
        connect: returns the endpoint of a live predictor; blocking, called from the thread that
        calls `predict`,
            first on the first frame and again after every failure.
        num_code_groups: Q of the checkpoint.
        max_rows: largest batch.
    """

    def __init__(
        self,
        connect: Callable[[], FrameEndpoint],
        num_code_groups: int = 16,
        max_rows: int = 256,
        channel: str = "auto",
    ) -> None:
        self.connect = connect
        self.num_code_groups = num_code_groups
        self.max_rows = max_rows
        self.channel = channel
        self.connection: socket.socket | None = None
        self.shared: SharedBuffers | None = None
        self.transport = "none"
        self.peer_dtype = torch.float32
        self.reconnects = -1
        self.reached_s = -math.inf

    def predict(self, batch: FrameBatch) -> Tensor:
        for attempt in range(_RETRIES):
            try:
                if self.connection is None:
                    self._open(batch)
                return self._call(batch)
            except (ConnectionError, OSError) as error:
                logger.warning("code predictor lost (%s), attempt %d", error, attempt + 1)
                self.close()
                time.sleep(0.1 * attempt)
        raise StageFailed(f"no code predictor answered in {_RETRIES} attempts")

    def _open(self, batch: FrameBatch) -> None:
        self.reached_s = math.inf
        try:
            endpoint = self.connect()
        finally:
            self.reached_s = time.monotonic()
        self.reconnects += 1
        same_node = endpoint.node == node_identity()
        if same_node:
            connection = socket.socket(socket.AF_UNIX)
            target: str | tuple[str, int] = endpoint.unix_path
        else:
            connection = socket.socket()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            target = (endpoint.host, endpoint.port)
        connection.settimeout(_CALL_TIMEOUT_S)
        connection.connect(target)
        device = batch.hidden.device
        same_gpu = same_node and endpoint.gpu is not None and endpoint.gpu == gpu_identity(device)
        if self.channel == "cuda_ipc" and not same_gpu:
            raise StageFailed("channel cuda_ipc needs talker and code predictor on one GPU")
        handles = b""
        if same_gpu and self.channel != "socket":
            self.shared = SharedBuffers.create(self.max_rows, self.num_code_groups - 1, batch)
            handles = self.shared.export()
        send(connection, HELLO, 0, handles)
        kind, _, answer = read_message(connection)
        if kind != HELLO:
            raise StageFailed(f"code predictor refused the connection: {bytes(answer).decode()}")
        self.peer_dtype = getattr(torch, bytes(answer).decode().removeprefix("torch."))
        self.connection = connection
        self.transport = "cuda_ipc" if self.shared else ("unix" if same_node else "tcp")
        logger.info("code predictor reached over %s at %s", self.transport, target)

    def _call(self, batch: FrameBatch) -> Tensor:
        assert self.connection is not None
        rows = len(batch.code_0)
        if self.shared is not None:
            for target, source in zip(self.shared.batch.tensors(), batch.tensors(), strict=True):
                target[:rows].copy_(source)
            stream = torch.cuda.current_stream()
            self.shared.ready.record(stream)
            send(self.connection, FRAME, rows)
            self._answer(rows)
            stream.wait_event(self.shared.answered)
            return self.shared.codes[:rows]
        hidden = batch.hidden.to(self.peer_dtype)
        columns = [to_bytes(t) for t in (hidden, *batch.tensors()[1:])]
        send(self.connection, FRAME, rows, *columns)
        payload = self._answer(rows)
        codes = torch.frombuffer(payload, dtype=torch.int16).view(rows, -1)
        return codes.to(batch.hidden.device, torch.int64)

    def _answer(self, rows: int) -> bytearray:
        assert self.connection is not None
        kind, answered, payload = read_message(self.connection)
        if kind == ERROR:
            raise StageFailed(f"code predictor: {bytes(payload).decode()}")
        if kind != FRAME or answered != rows:
            raise ConnectionError("code predictor answered out of order")
        return payload

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = self.shared = None
