"""A training step as one CUDA graph: small models spend their time on launches otherwise."""

import logging
import os
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

_WARM_UPS: Final = 3
_LOG = logging.getLogger(__name__)


class Replayed:
    """A step on tensors of fixed shapes; plain calls on a CPU, one graph launch on a GPU.

    The step must not look at values on the host. Its random numbers come from the default
    generator, its optimizers are capturable. What it returns is overwritten by the next call.
    VOICE_WITHOUT_GRAPHS in the environment keeps to plain calls, should a capture break something.
    """

    def __init__(self, step: Callable[..., dict[str, Tensor]], device: torch.device) -> None:
        self._step = step
        self._device = device
        self._calls = 0
        self._inputs: list[Tensor] = []
        self._graph: Any = None
        self._is_recordable = "VOICE_WITHOUT_GRAPHS" not in os.environ
        self._result: dict[str, Tensor] = {}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        if self._device.type != "cuda":
            return self._step(*inputs)
        if not self._inputs:
            self._inputs = [value.clone() for value in inputs]
        for kept, value in zip(self._inputs, inputs, strict=True):
            kept.copy_(value, non_blocking=True)
        if self._graph is None:
            self._calls += 1
            if self._calls <= _WARM_UPS or not self._is_recordable:
                return self._aside()
            self._record()
            if self._graph is None:
                return self._aside()
        self._graph.replay()
        return self._result

    def _record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph):
                self._result = self._step(*self._inputs)
        except RuntimeError:
            # Slower, but lent GPU time must not end here.
            _LOG.exception("the step cannot be recorded; it goes on launch by launch")
            torch.cuda.synchronize()
            self._is_recordable = False
            return
        self._graph = graph

    def _aside(self) -> dict[str, Tensor]:
        """Run on another stream, as libraries must have been used before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            result = self._step(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return result


def capturable_adamw(
    parameters: Any, device: torch.device, rate: float, **options: Any
) -> torch.optim.AdamW:
    """Return an optimizer whose step can be part of a graph; its rate is a tensor there."""
    if device.type != "cuda":
        return torch.optim.AdamW(parameters, lr=rate, **options)
    rate_tensor = torch.tensor(rate, device=device)
    return torch.optim.AdamW(parameters, lr=rate_tensor, capturable=True, fused=True, **options)


def moments(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """Return an optimizer's state, small enough to be kept: the running means as bfloat16."""
    return {
        number: {
            name: value.to(torch.bfloat16) if value.ndim else value.clone()
            for name, value in state.items()
        }
        for number, state in optimizer.state_dict()["state"].items()
    }


def set_moments(
    optimizer: torch.optim.Optimizer, kept: dict[int, dict[str, Tensor]], device: torch.device
) -> None:
    """Go on from what `moments` returned, on a GPU; elsewhere nobody trains for long."""
    if device.type == "cuda" and kept:
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": kept, "param_groups": groups})


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Change the learning rate, also of a recorded step."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
