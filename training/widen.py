"""A wider speech decoder that says what the narrow one said.

Channels are added to the convolutions of the vocoder. What was there reads nothing of them at
first, so that the audio stays the same; they read all there is, and training lets them be heard.
"""

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def widen(narrow: nn.Module, wide: nn.Module) -> None:
    """Give `wide` the function of `narrow`, which has the same modules with fewer channels.

    Its own weights stay where they lead to new channels.

    Raises:
        ValueError: a weight has fewer axes' worth of room than the narrow one, or another kernel.
    """
    modules = dict(narrow.named_modules())
    for name, module in wide.named_modules():
        source: Any = modules[name]
        axis = _input_axis(module)
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for part, tensor in own:
            given = getattr(source, part)
            _fill(f"{name}.{part}", tensor, given, axis if part == "weight" else None)


def _input_axis(module: nn.Module) -> int | None:
    """Axis of the input channels in a module's weight, where there is one that may grow."""
    if isinstance(module, nn.ConvTranspose1d):
        return 0
    if isinstance(module, nn.Conv1d) and module.groups == 1:
        return 1
    return None


def _fill(name: str, wide: Tensor, narrow: Tensor, inputs: int | None) -> None:
    if wide.shape == narrow.shape:
        wide.copy_(narrow)
        return
    channels = 1 if inputs is None else 2
    fits = wide.ndim == narrow.ndim and all(
        b <= a if axis < channels else a == b
        for axis, (a, b) in enumerate(zip(wide.shape, narrow.shape, strict=True))
    )
    if not fits:
        raise ValueError(f"{name}: {tuple(narrow.shape)} does not fit into {tuple(wide.shape)}")
    if inputs is not None:
        # Old outputs must not read new inputs.
        old = [slice(None), slice(None)]
        old[1 - inputs] = slice(narrow.shape[1 - inputs])
        wide[tuple(old)] = 0.0
    wide[tuple(slice(size) for size in narrow.shape)] = narrow
