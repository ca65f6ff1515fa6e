"""A running mean of weights: what is evaluated and exported, steadier than the last step's."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class RunningMean:
    """The mean of a module's weights over about the last `steps` steps.

    Args:
        module: whose parameters are followed.
        steps: how far back it reaches.
        every: steps between two looks.
    """

    def __init__(self, module: nn.Module, steps: float, every: int = 10) -> None:
        self._module = module
        self._parameters = [p.data for p in module.parameters()]
        self._mean = [p.clone() for p in self._parameters]
        self._weight = min(1.0, every / steps)
        self._every = every

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Look at the weights after `step` steps."""
        if step % self._every == 0:
            # A short run counts all of it alike: its start must not weigh on the mean.
            weight = max(self._weight, self._every / (step + self._every))
            torch._foreach_lerp_(self._mean, self._parameters, weight)  # pyright: ignore

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module have the mean for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for own, mean in zip(self._parameters, self._mean, strict=True):
            kept = own.clone()
            own.copy_(mean)
            mean.copy_(kept)

    def state(self) -> dict[str, Tensor]:
        """Return the module's state with the mean for its parameters, on its device."""
        names = [name for name, _ in self._module.named_parameters()]
        return self._module.state_dict() | dict(zip(names, self._mean, strict=True))

    @torch.no_grad()
    def set_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        for (name, _), mean in zip(self._module.named_parameters(), self._mean, strict=True):
            mean.copy_(state[name])
