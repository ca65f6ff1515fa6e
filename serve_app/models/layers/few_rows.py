"""Transformer layers of few rows in few kernels; the code predictor's and the talker's.

Three ways to run the same layers, by what multiplies: kernels without matrix units, kernels that
stream their weights into partial sums, or the library. Which is fastest for how many rows, the
callers' plans say. Attention is the callers' own: `attend(index, qkv)` returns [rows, heads * D].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.models.layers.linear_kernels import add_norm, swiglu, tiled_linear, vector_linear

# Of a layer, by its index: what it makes of its qkv, or of its normed input.
Step = Callable[[int, Tensor], Tensor]


class LayerWeights(Protocol):
    """Weights [outputs, inputs] of a layer; gate and up rows of `gate_up` alternate."""

    @property
    def input_norm(self) -> Tensor: ...
    @property
    def qkv(self) -> Tensor: ...
    @property
    def output(self) -> Tensor: ...
    @property
    def post_norm(self) -> Tensor: ...
    @property
    def gate_up(self) -> Tensor: ...
    @property
    def down(self) -> Tensor: ...


# Rows of a program where a row's result may not depend on the batch; what many rows want.
DETERMINISTIC_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Tiles:
    """Outputs that one program of a matrix product makes, by product; `head` is the caller's."""

    qkv: int
    output: int
    gate_up: int
    down: int
    head: int = 16


def vector_layers(
    layers: Sequence[LayerWeights],
    x: Tensor,
    attend: Step,
    eps: float,
    tiles: Tiles,
    *,
    qkv_dtype: torch.dtype,
    residual: torch.dtype,
    pdl: bool,
) -> Tensor:
    """The residual stream [rows, h] behind all layers, in `residual`; x [rows, h] is kept."""
    product = partial(vector_linear, pdl=pdl)
    # Reused by all layers: a kernel writes only after all kernels before it have ended.
    qkv = x.new_empty(len(x), len(layers[0].qkv), dtype=qkv_dtype)
    state = torch.empty_like(x, dtype=residual)
    inner = x.new_empty(len(x), layers[0].down.shape[1])
    for index, weights in enumerate(layers):
        product(x, weights.qkv, qkv, tiles.qkv, norm=(weights.input_norm, eps))
        product(attend(index, qkv), weights.output, state, tiles.output, residual=x)
        x, norm = state, (weights.post_norm, eps)
        product(x, weights.gate_up, inner, tiles.gate_up, norm=norm, gated=True)
        product(inner, weights.down, x, tiles.down, residual=x)
    return x


def tiled_layers(
    layers: Sequence[LayerWeights],
    x: Tensor,
    attend: Step,
    eps: float,
    tiles: Tiles,
    splits: tuple[int, int],
    stages: int,
    *,
    qkv_dtype: torch.dtype,
    pdl: bool,
    tile_rows: int | None = None,
) -> Tensor:
    """Advance the residual stream x [rows, h] in place; return what the last layer adds to it.

    That is float32 [splits[1], rows, h], for `add_norm`; `splits` are the partial sums of output
    and down; `tile_rows` is that of `tiled_linear`.
    """
    product = partial(tiled_linear, stages=stages, pdl=pdl, tile_rows=tile_rows)
    qkv = x.new_empty(len(x), len(layers[0].qkv), dtype=qkv_dtype)
    inner = x.new_empty(len(x), layers[0].down.shape[1])
    mixed, fed = (x.new_empty(n, *x.shape, dtype=torch.float32) for n in splits)
    delta = None
    for index, weights in enumerate(layers):
        product(add_norm(x, delta, weights.input_norm, eps, pdl), weights.qkv, qkv, tiles.qkv)
        product(attend(index, qkv), weights.output, mixed, tiles.output, splits[0])
        normed = add_norm(x, mixed, weights.post_norm, eps, pdl)
        product(normed, weights.gate_up, inner, tiles.gate_up, gated=True)
        delta = product(inner, weights.down, fed, tiles.down, splits[1])
    return fed


def library_layers(
    layers: Sequence[LayerWeights], x: Tensor, attention: Step, eps: float, *, pdl: bool
) -> Tensor:
    """As `tiled_layers`, through the library: [rows, h] in the dtype of x.

    `attention` takes a layer's normed input and includes the projections; see `projected`.
    """
    delta = None
    for index, weights in enumerate(layers):
        delta = attention(index, add_norm(x, delta, weights.input_norm, eps, pdl))
        pairs = F.linear(add_norm(x, delta, weights.post_norm, eps, pdl), weights.gate_up)
        delta = F.linear(swiglu(pairs, pdl), weights.down)
    assert delta is not None, "no layers"
    return delta


def projected(layers: Sequence[LayerWeights], attend: Step) -> Step:
    """`attend` between the library's projections of the layer."""
    return lambda index, x: F.linear(
        attend(index, F.linear(x, layers[index].qkv)), layers[index].output
    )
