"""What passes between a replica of `fused` and the process of its stages: messages over a stream.

A message is two lengths, a pickle, and the samples of a chunk as they are. These are most of what
passes; within a pickle they would be copied twice more, while the sender holds Python's lock.
"""

import asyncio
import pickle
import struct
from typing import Any, Final

import numpy as np

from serve_app.types import PcmChunk

_LENGTHS: Final = struct.Struct("<II")
# Of the buffer that a chunk of a few seconds fits in several times.
BUFFER_BYTES: Final = 1 << 22


def write(writer: asyncio.StreamWriter, message: tuple[Any, ...]) -> None:
    """Send `message`; a chunk at its end travels with its samples beside the pickle.

    The samples are read until they are sent: nobody may change them.
    """
    *before, value = message
    if not isinstance(value, PcmChunk):
        data = pickle.dumps((message, None), protocol=5)
        writer.write(_LENGTHS.pack(len(data), 0) + data)
        return
    codes = value.codes
    # Without its class, whose fields Python code would collect.
    rest = (
        value.first_sample,
        codes.shape,
        codes.tobytes(),
        value.finish_reason,
        value.timings,
        value.tokens,
    )
    data = pickle.dumps((before, rest), protocol=5)
    samples = np.ascontiguousarray(value.samples).view(np.uint8).data
    writer.writelines((_LENGTHS.pack(len(data), len(samples)), data, samples))


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message; a chunk's arrays are read-only.

    Raises:
        EOFError: the other end is gone.
    """
    try:
        head = await reader.readexactly(_LENGTHS.size)
        length, num_bytes = _LENGTHS.unpack(head)
        message, rest = pickle.loads(await reader.readexactly(length))
        if rest is None:
            return message
        samples = np.frombuffer(await reader.readexactly(num_bytes), np.int16)
    except (asyncio.IncompleteReadError, OSError) as error:
        raise EOFError("the other process is gone") from error
    first_sample, shape, codes, *others = rest
    frames = np.frombuffer(codes, np.int64).reshape(shape)
    return (*message, PcmChunk(samples, first_sample, frames, *others))
