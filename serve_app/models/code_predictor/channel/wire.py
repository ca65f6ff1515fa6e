"""Messages of the frame channel, as they lie on a socket.

A message is a 12-byte header (kind, rows, payload length) and, where the tensors travel by socket,
the rows' columns one after the other. Answers carry the codes the same way.
"""

import socket
import struct
from typing import Final

import torch
from torch import Tensor

from serve_app.models.code_predictor.channel.contract import FrameBatch

HEADER: Final = struct.Struct("<III")
HELLO, FRAME, ERROR = 1, 2, 3


def receive(connection: socket.socket, length: int) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionError("the peer closed the frame channel")
        view = view[count:]
    return data


def send(connection: socket.socket, kind: int, rows: int, *parts: bytes | memoryview) -> None:
    payload = b"".join(parts)
    connection.sendall(HEADER.pack(kind, rows, len(payload)) + payload)


def read_message(connection: socket.socket) -> tuple[int, int, bytearray]:
    kind, rows, length = HEADER.unpack(receive(connection, HEADER.size))
    return kind, rows, receive(connection, length)


def to_bytes(tensor: Tensor) -> bytes:
    """The rows of a tensor as they lie in a contiguous copy of it, whatever its strides."""
    host = tensor.detach().cpu()
    if host.dtype is torch.bfloat16:  # numpy has none
        host = host.view(torch.int16)
    return host.numpy().tobytes()


def split(payload: bytearray, like: FrameBatch, rows: int) -> list[Tensor]:
    """Tensors of `rows` rows laid out one after the other, shaped and typed as `like`'s."""
    parts, offset = [], 0
    for tensor in like.tensors():
        count = rows * tensor[:1].numel()
        parts.append(torch.frombuffer(payload, dtype=tensor.dtype, count=count, offset=offset))
        parts[-1] = parts[-1].view(rows, *tensor.shape[1:])
        offset += count * tensor.element_size()
    return parts
