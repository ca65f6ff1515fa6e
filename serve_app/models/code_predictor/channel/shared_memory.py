"""Frames through memory of one GPU that two processes hold."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from serve_app.models.code_predictor.channel.contract import FrameBatch

MAX_EXPORT_BYTES: Final = 1 << 16


@dataclass(slots=True)
class SharedBuffers:
    """Device buffers and events that two processes on one GPU both hold."""

    batch: FrameBatch
    codes: Tensor
    ready: torch.cuda.Event
    answered: torch.cuda.Event

    @classmethod
    def create(cls, rows: int, groups: int, like: FrameBatch) -> "SharedBuffers":
        device = like.hidden.device
        batch = FrameBatch.zeros(rows, like.hidden.shape[1], like.hidden.dtype, device)
        codes = torch.zeros(rows, groups, dtype=torch.int64, device=device)
        events = [torch.cuda.Event(interprocess=True) for _ in range(2)]
        for event in events:  # an event has a handle once it has been recorded
            event.record()
        return cls(batch, codes, *events)

    def hand_over(self, batch: FrameBatch) -> None:
        """Copy a batch into the buffers; `ready` says when it is there."""
        rows = len(batch.code_0)
        for target, source in zip(self.batch.tensors(), batch.tensors(), strict=True):
            target[:rows].copy_(source)
        # What lies here must not pass for an answer if the peer ends before it has written one.
        self.codes[:rows].fill_(-1)
        self.ready.record(torch.cuda.current_stream())

    def take_back(self, rows: int) -> Tensor:
        """The codes, for what follows on the current stream; the peer has said that they are there.

        Its word came from the host: the event makes them visible to this stream as well.
        """
        torch.cuda.current_stream().wait_event(self.answered)
        return self.codes[:rows]

    def export(self) -> bytes:
        """Handles for the peer, through torch's own reductions of CUDA tensors."""
        from multiprocessing.reduction import ForkingPickler

        import torch.multiprocessing  # noqa: F401  registers the reductions

        tensors = (*self.batch.tensors(), self.codes)
        handles = (self.ready.ipc_handle(), self.answered.ipc_handle())
        return bytes(ForkingPickler.dumps((tensors, handles)))

    @classmethod
    def open(cls, data: bytes, device: torch.device) -> "SharedBuffers":
        import pickle

        tensors, handles = pickle.loads(data)
        events = [torch.cuda.Event.from_ipc_handle(device, handle) for handle in handles]
        return cls(FrameBatch(*tensors[:-1]), tensors[-1], *events)  # pyright: ignore[reportArgumentType]
