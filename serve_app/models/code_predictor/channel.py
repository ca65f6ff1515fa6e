"""From the talker to a code predictor and back, once per frame for the whole running batch.

`InProcessFrames` runs the predictor where the talker is. `RemoteFrames` reaches a `FrameServer` in
another process:
over a Unix socket on the same node, over TCP elsewhere; the tensors go through CUDA IPC buffers
where both sides see one GPU, else through the socket. A predictor keeps nothing between frames, so
a call that fails
with its peer is sent
again to another one and gives the same codes.

Wire format of a call: a 12-byte header (kind, rows, payload length) and, over the socket, the rows'
columns one after the other. Answers carry the codes the same way.
"""

import contextlib
import logging
import os
import secrets
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from serve_app.config import CodePredictorConfig
from serve_app.errors import StageFailed, StageUnavailable
from serve_app.models.checkpoint.spec import CodePredictorSpec
from serve_app.models.code_predictor.model import CodePredictor, FrameBatch
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import DeviceSpec, resolve_device

logger = logging.getLogger(__name__)

_HEADER = struct.Struct("<III")
_HELLO, _FRAME, _ERROR = 1, 2, 3
_CALL_TIMEOUT_S = 10.0
_RETRIES = 5


class FrameClient(Protocol):
    """What the talker calls inside its step."""

    def predict(self, batch: FrameBatch) -> Tensor:
        """Codes of groups 1..Q-1, int64 [B, Q - 1], on the batch's device; valid until the next
        call.

        Raises:
            StageFailed: no predictor answered.
        """
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FrameEndpoint:
    """Where a frame server listens, and what decides how to reach it."""

    host: str
    port: int
    unix_path: str
    node: str
    gpu: str | None


def node_identity() -> str:
    """A string equal for processes that can share a Unix socket and CUDA IPC handles."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{os.stat(tempfile.gettempdir()).st_ino}"
    return socket.gethostname()


def gpu_identity(device: torch.device) -> str | None:
    """The UUID of a CUDA device; None on CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def _predictor_class(
    config: CodePredictorConfig, place: DeviceSpec, spec: CodePredictorSpec
) -> type[CodePredictor]:
    """The fused kernels are for CUDA, bfloat16 and widths such as the releases have; else eager."""
    shape = spec.transformer
    widths = (shape.hidden_size, shape.intermediate_size, shape.num_kv_heads * shape.head_dim)
    suitable = all(width % 512 == 0 for width in widths) and shape.head_dim == 128
    on_cuda = place.device.type == "cuda" and place.dtype == torch.bfloat16
    if config.kernels == "eager" or not (suitable and on_cuda):
        return CodePredictor
    from serve_app.models.code_predictor.fast import FastCodePredictor

    return FastCodePredictor


class InProcessFrames:
    """The code predictor in the talker's own process: eager on CPU, one CUDA graph per batch size
    on GPU.
    """

    def __init__(
        self, predictor: CodePredictor, hidden_dtype: torch.dtype, batch_sizes: tuple[int, ...]
    ) -> None:
        self.predictor = predictor
        self.hidden_dtype = hidden_dtype
        width, device = predictor.spec.talker_hidden_size, predictor.device

        def inputs(rows: int) -> tuple[Tensor, ...]:
            return FrameBatch.zeros(rows, width, hidden_dtype, device).tensors()

        self.batch_sizes = batch_sizes
        self.run = BatchGraphs(inputs, predictor.frame, batch_sizes, enabled=device.type == "cuda")

    @classmethod
    def load(cls, checkpoint: Any, config: CodePredictorConfig, device: str) -> "InProcessFrames":
        """Build the predictor of `checkpoint` (serve_app.models.checkpoint.files.Checkpoint)."""
        place = resolve_device(device, config.dtype)  # type: ignore[arg-type]
        tensors = checkpoint.tensors("talker.code_predictor.")
        codec = checkpoint.tensors("talker.model.codec_embedding.")["weight"]
        with torch.inference_mode():
            spec = checkpoint.spec.code_predictor
            predictor = _predictor_class(config, place, spec)(
                spec, tensors, codec, place.device, place.dtype
            )
            return cls(predictor, place.dtype, config.batch_sizes)

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture the graphs of `predict`; not needed by a talker that captures `predict_eager` in
        its own.
        """
        device = self.predictor.device
        if device.type == "cuda":
            with torch.cuda.stream(torch.cuda.Stream(device)):
                self.run.capture_all()
                torch.cuda.current_stream().synchronize()

    @torch.inference_mode()
    def predict(self, batch: FrameBatch) -> Tensor:
        hidden, *rest = batch.tensors()
        return self.run(hidden.to(self.hidden_dtype), *rest)

    def predict_eager(self, batch: FrameBatch) -> Tensor:
        """`predict` as plain tensor code, for a caller that captures it together with its own."""
        hidden, *rest = batch.tensors()
        return self.predictor.frame(hidden.to(self.hidden_dtype), *rest)

    def close(self) -> None: ...


# --- messages


def _receive(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionError("the peer closed the frame channel")
        view = view[count:]
    return data


def _send(connection: socket.socket, kind: int, rows: int, *parts: bytes | memoryview) -> None:
    payload = b"".join(parts)
    connection.sendall(_HEADER.pack(kind, rows, len(payload)) + payload)


def _read_message(connection: socket.socket) -> tuple[int, int, bytearray]:
    kind, rows, length = _HEADER.unpack(_receive(connection, _HEADER.size))
    return kind, rows, _receive(connection, length)


def _to_bytes(tensor: Tensor) -> bytes:
    """The rows of a tensor as they lie in a contiguous copy of it, whatever its strides."""
    host = tensor.detach().cpu()
    if host.dtype is torch.bfloat16:  # numpy has none
        host = host.view(torch.int16)
    return host.numpy().tobytes()


def _split(payload: bytearray, like: FrameBatch, rows: int) -> list[Tensor]:
    """Tensors of `rows` rows laid out one after the other, shaped and typed as `like`'s."""
    parts, offset = [], 0
    for tensor in like.tensors():
        count = rows * tensor[:1].numel()
        parts.append(torch.frombuffer(payload, dtype=tensor.dtype, count=count, offset=offset))
        parts[-1] = parts[-1].view(rows, *tensor.shape[1:])
        offset += count * tensor.element_size()
    return parts


# --- server


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
        shared: _SharedBuffers | None = None
        while True:
            kind, rows, payload = _read_message(connection)
            try:
                if kind == _HELLO:
                    # Handles are pickled: taken from the socket that only this user can open.
                    if payload and connection.family != socket.AF_UNIX:
                        raise ValueError("CUDA IPC handles are accepted over the Unix socket only")
                    shared = (
                        _SharedBuffers.open(bytes(payload), predictor.device) if payload else None
                    )
                    _send(connection, _HELLO, 0, str(predictor.dtype).encode())
                elif shared is not None:
                    self._answer_shared(shared, rows)
                    _send(connection, _FRAME, rows)
                else:
                    tensors = [t.to(predictor.device) for t in _split(payload, like, rows)]
                    with self.lock:
                        codes = self.frames.run(*tensors).to(torch.int16).cpu()
                    _send(connection, _FRAME, rows, _to_bytes(codes))
                self.calls += 1
                self.rows += rows
            except (ConnectionError, OSError):
                raise
            except Exception as error:
                logger.exception("a frame failed")
                _send(connection, _ERROR, rows, repr(error).encode())

    def _answer_shared(self, shared: "_SharedBuffers", rows: int) -> None:
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


# --- client


@dataclass(slots=True)
class _SharedBuffers:
    """Device buffers and events that two processes on one GPU both hold."""

    batch: FrameBatch
    codes: Tensor
    ready: torch.cuda.Event
    answered: torch.cuda.Event

    @classmethod
    def create(cls, rows: int, groups: int, like: FrameBatch) -> "_SharedBuffers":
        device = like.hidden.device
        batch = FrameBatch.zeros(rows, like.hidden.shape[1], like.hidden.dtype, device)
        codes = torch.zeros(rows, groups, dtype=torch.int64, device=device)
        events = [torch.cuda.Event(interprocess=True) for _ in range(2)]
        for event in events:  # an event has a handle once it has been recorded
            event.record()
        return cls(batch, codes, *events)

    def export(self) -> bytes:
        """Handles for the peer, through torch's own reductions of CUDA tensors."""
        from multiprocessing.reduction import ForkingPickler

        import torch.multiprocessing  # noqa: F401  registers the reductions

        tensors = (*self.batch.tensors(), self.codes)
        handles = (self.ready.ipc_handle(), self.answered.ipc_handle())
        return bytes(ForkingPickler.dumps((tensors, handles)))

    @classmethod
    def open(cls, data: bytes, device: torch.device) -> "_SharedBuffers":
        import pickle

        tensors, handles = pickle.loads(data)
        events = [torch.cuda.Event.from_ipc_handle(device, handle) for handle in handles]
        return cls(FrameBatch(*tensors[:-1]), tensors[-1], *events)  # pyright: ignore[reportArgumentType]


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
        self.shared: _SharedBuffers | None = None
        self.transport = "none"
        self.peer_dtype = torch.float32
        self.reconnects = -1

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
        endpoint = self.connect()
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
            self.shared = _SharedBuffers.create(self.max_rows, self.num_code_groups - 1, batch)
            handles = self.shared.export()
        _send(connection, _HELLO, 0, handles)
        kind, _, answer = _read_message(connection)
        if kind != _HELLO:
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
            _send(self.connection, _FRAME, rows)
            self._answer(rows)
            stream.wait_event(self.shared.answered)
            return self.shared.codes[:rows]
        hidden = batch.hidden.to(self.peer_dtype)
        columns = [_to_bytes(t) for t in (hidden, *batch.tensors()[1:])]
        _send(self.connection, _FRAME, rows, *columns)
        payload = self._answer(rows)
        codes = torch.frombuffer(payload, dtype=torch.int16).view(rows, -1)
        return codes.to(batch.hidden.device, torch.int64)

    def _answer(self, rows: int) -> bytearray:
        assert self.connection is not None
        kind, answered, payload = _read_message(self.connection)
        if kind == _ERROR:
            raise StageFailed(f"code predictor: {bytes(payload).decode()}")
        if kind != _FRAME or answered != rows:
            raise ConnectionError("code predictor answered out of order")
        return payload

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
        self.connection = self.shared = None
