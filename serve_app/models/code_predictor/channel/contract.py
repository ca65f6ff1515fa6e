"""What a talker and a code predictor have in common: the frame, the call, and who is where.

A talker needs this module and none of the predictor's weights.
"""

import contextlib
import os
import socket
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class FrameBatch:
    """One frame of B streams, as the talker hands it over; all tensors on one device.

    hidden: [B, H] talker hidden states after the final norm, in the talker's dtype.
    code_0, seed, frame_number, top_k: int64 [B]. temperature, top_p: float32 [B].
    """

    hidden: Tensor
    code_0: Tensor
    seed: Tensor
    frame_number: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor

    def tensors(self) -> tuple[Tensor, ...]:
        return (
            self.hidden,
            self.code_0,
            self.seed,
            self.frame_number,
            self.temperature,
            self.top_k,
            self.top_p,
        )

    @classmethod
    def zeros(
        cls, batch: int, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> "FrameBatch":
        """Static buffers for a captured graph, or a harmless warm-up batch."""
        ints = [torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(4)]
        floats = [torch.ones(batch, dtype=torch.float32, device=device) for _ in range(2)]
        hidden = torch.zeros(batch, hidden_size, dtype=dtype, device=device)
        return cls(hidden, ints[0], ints[1], ints[2], floats[0], ints[3], floats[1])


class FrameClient(Protocol):
    """What the talker calls inside its step.

    reached_s: the moment of `time.monotonic` at which a predictor was last found; infinite while
        one is being looked for, which may take a replica's start. The caller's step does not hang
        meanwhile.
    """

    reached_s: float

    def predict(self, batch: FrameBatch) -> Tensor:
        """Codes of groups 1..Q-1: int64 [B, Q - 1] on the batch's device, until the next call.

        -1 where the predictor was lost after it had answered and before it was done.

        Raises:
            StageFailed: no predictor answered.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class CapturableFrames(FrameClient, Protocol):
    """A predictor in the talker's own process, whose frame the talker's graphs may contain."""

    batch_sizes: tuple[int, ...]

    def predict_eager(self, batch: FrameBatch) -> Tensor:
        """`predict` as plain tensor code."""
        ...


class FrameSessions(Protocol):
    """Where a client finds predictors."""

    @property
    def is_over(self) -> bool:
        """Whether the predictor last named wants to be let go, or a better one may be there."""
        ...

    def connect(self, node: str) -> "FrameEndpoint":
        """Name a live predictor for a client on `node` (`node_identity`); may block for long.

        Raises:
            OSError: none could be reached; worth another attempt.
        """
        ...


@dataclass(frozen=True, slots=True)
class FrameEndpoint:
    """Where a frame server listens, and what decides how to reach it.

    host, port: of its TCP listener; port 0 while it has none.
    token: what a peer has to show; a server's own.
    """

    host: str
    port: int
    unix_path: str
    node: str
    gpu: str | None
    token: str = field(repr=False)


def node_identity() -> str:
    """A string equal for processes that can share a Unix socket and CUDA IPC handles.

    The machine and its temporary folder: two containers of one image show the same inode, on
    different devices.
    """
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        folder = os.stat(tempfile.gettempdir())
        return f"{boot}:{folder.st_dev}:{folder.st_ino}"
    return socket.gethostname()


def gpu_identity(device: torch.device) -> str | None:
    """The UUID of a CUDA device; None on CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
