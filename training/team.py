"""Several processes, one GPU each, that train one model: their weights are averaged now and then.

Steps stay as they are (each a recorded graph without communication); every so many steps all
processes take the mean of their weights. The mean is made on the CPU (gloo), where nothing disturbs
a recorded graph. One process alone is a team, too.
"""

import os
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

_PATIENCE: Final = timedelta(minutes=3)


class Team:
    """Who trains along, from what `torchrun` puts into the environment.

    every: steps between two meetings, at each of which weights are averaged and it is decided
        whether to go on.
    """

    def __init__(self, every: int = 80) -> None:
        self.every = every
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size > 1 and not dist.is_initialized():
            # All are on one machine, whose name need not be known anywhere.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            dist.init_process_group("gloo", timeout=_PATIENCE)

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all are here; for `_PATIENCE` at most."""
        if self.size > 1:
            dist.barrier()

    def meets(self, step: int) -> bool:
        """Whether all meet after this many steps."""
        return self.size > 1 and step % self.every == 0

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over all processes into `tensors`."""
        kept = list(tensors)
        flat = torch.cat([tensor.detach().flatten().float() for tensor in kept])
        shared = flat.cpu()
        dist.all_reduce(shared)
        parts = (shared / self.size).to(flat.device).split([tensor.numel() for tensor in kept])
        for tensor, part in zip(kept, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Put what the leader has into `tensors`."""
        for tensor in tensors:
            shared = tensor.detach().cpu()
            dist.broadcast(shared, 0)
            tensor.copy_(shared)

    def any(self, flag: bool) -> bool:
        """Whether it is true for one of the processes at least."""
        if self.size == 1:
            return flag
        shared = torch.tensor(float(flag))
        dist.all_reduce(shared)
        return bool(shared > 0)
