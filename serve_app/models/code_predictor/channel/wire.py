"""Messages of the frame channel, as they lie on a socket.

A message is a 12-byte header (kind, rows, payload length) and its payload: in the first one the
token and what `shared_memory` exports, later the rows' columns one after the other, or nothing
where they go through shared memory. Answers carry the codes the same way.
"""

import socket
import struct
import time
from typing import Final

import torch
from torch import Tensor

from serve_app.models.code_predictor.channel.contract import FrameBatch

HEADER: Final = struct.Struct("<III")
HELLO, FRAME = 1, 2


class BadMessage(ConnectionError):
    """The peer does not speak as agreed; nothing that it sends can be trusted."""


def send(connection: socket.socket, kind: int, rows: int, *parts: bytes | memoryview) -> None:
    payload = b"".join(parts)
    connection.sendall(HEADER.pack(kind, rows, len(payload)) + payload)


def read_message(
    connection: socket.socket, most_bytes: int, until_s: float | None = None
) -> tuple[int, int, bytearray]:
    """The next message: kind, rows, payload.

    Args:
        connection: where from.
        most_bytes: of the payload; room is made for no more.
        until_s: moment of `time.monotonic` by which all of it has to be there.

    Raises:
        BadMessage: the payload is longer.
        OSError: the peer has gone, or took too long.
    """
    kind, rows, length = HEADER.unpack(_receive(connection, HEADER.size, until_s))
    if length > most_bytes:
        raise BadMessage(f"a message of {length} bytes, at most {most_bytes} are expected")
    return kind, rows, _receive(connection, length, until_s)


def _receive(connection: socket.socket, length: int, until_s: float | None) -> bytearray:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        if until_s is not None:
            # 0 would mean: do not wait at all.
            connection.settimeout(max(1e-3, until_s - time.monotonic()))
        count = connection.recv_into(view)
        if count == 0:
            raise ConnectionError("the peer closed the frame channel")
        view = view[count:]
    return data


def to_bytes(tensor: Tensor) -> bytes:
    """The rows of a tensor as they lie in a contiguous copy of it, whatever its strides."""
    host = tensor.detach().cpu()
    if host.dtype is torch.bfloat16:  # numpy has none
        host = host.view(torch.int16)
    return host.numpy().tobytes()


def row_bytes(like: FrameBatch) -> int:
    """Length of one row of all columns."""
    return sum(tensor[:1].numel() * tensor.element_size() for tensor in like.tensors())


def split(payload: bytearray, like: FrameBatch, rows: int) -> FrameBatch:
    """The columns of `rows` rows, shaped and typed as `like`'s; they share the payload's memory.

    Raises:
        BadMessage: the payload has another length.
    """
    if len(payload) != rows * row_bytes(like):
        raise BadMessage(f"{len(payload)} bytes for {rows} rows of {row_bytes(like)}")
    parts: list[Tensor] = []
    offset = 0
    for tensor in like.tensors():
        count = rows * tensor[:1].numel()
        part = torch.frombuffer(payload, dtype=tensor.dtype, count=count, offset=offset)
        parts.append(part.view(rows, *tensor.shape[1:]))
        offset += count * tensor.element_size()
    return FrameBatch(*parts)
