"""Triton kernels of transformer layers on few rows: products, and what goes on between per row.

Both the code predictor and the talker are made of them.

`vector_linear` keeps a whole tile of weights in registers, so that under programmatic dependent
launch (`pdl`) the weights are on their way while the kernel before still runs; `tiled_linear`
fetches them into the second-level cache then. Activations are read after that kernel has ended,
past the L1 cache. Rounding to the weights' dtype happens once per product input; everything else is
float32. The order of a sum depends on shapes and tiles, not on the other rows. The eager reference
is `code_predictor`; tests/gpu compares them.
"""

# Triton's decorator keeps the annotation tl.constexpr, which callers meet with plain integers.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from serve_app.models.layers.launch import await_predecessor, launch_options, start_successor

# Lets two programs of small tiles share a multiprocessor: one loads weights while the other ends.
_VECTOR_REGISTERS = 128
# A warp's 32 threads take 16 bytes each: with inner dimensions of 1024 or 2048, a thread's part of
# x is its part of every weight row.
_WARP_LOAD = 256
_VECTOR_WIDTH = 2048
_TILED_ROWS = 64
_TILED_WIDTH = 128
_TILED_WARPS = 4
_ELEMENTWISE_BLOCK = 1024


@triton.jit
def _vector_kernel(
    x,
    norm,
    weight,
    residual,
    out,
    x_row_stride,
    eps,
    rows: tl.constexpr,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    width: tl.constexpr,
    tile_outputs: tl.constexpr,
    normed: tl.constexpr,
    gated: tl.constexpr,
    added: tl.constexpr,
    pdl: tl.constexpr,
):
    """One tile of `[residual +] linear([rms_norm](x))`, or of SiLU(even outputs) * odd outputs.

    Without matrix units: nothing goes through shared memory but one sum per warp, since a thread
    holds the same places of x and of each weight row. The norm's scale is applied to the sum, so
    its input is rounded once, after the norm's weight.
    """
    start_successor(pdl)
    parts: tl.constexpr = inputs // width
    column = tl.program_id(0) * tile_outputs + tl.arange(0, tile_outputs)
    inner = tl.arange(0, width)
    weights = ()
    norms = ()
    for part in tl.static_range(parts):
        at = column[:, None] * inputs + part * width + inner[None, :]
        weights = weights + (tl.load(weight + at),)  # noqa: RUF005
        if normed:
            norms = norms + (tl.load(norm + part * width + inner),)  # noqa: RUF005
    await_predecessor(pdl)
    values = ()
    for row in tl.static_range(rows):
        for part in tl.static_range(parts):
            at = row * x_row_stride + part * width + inner
            values = values + (tl.load(x + at, cache_modifier=".cg"),)  # noqa: RUF005
    for row in tl.static_range(rows):
        if gated:
            at = tl.program_id(0) * (tile_outputs // 2) + tl.arange(0, tile_outputs // 2)
            at += row * (outputs // 2)
        else:
            at = row * outputs + column
        if added:
            before = tl.load(residual + at, cache_modifier=".cg").to(tl.float32)
        total = tl.zeros([tile_outputs, width], tl.float32)
        squares = tl.zeros([width], tl.float32)
        for part in tl.static_range(parts):
            value = values[row * parts + part].to(tl.float32)
            if normed:
                squares += value * value
                value *= norms[part].to(tl.float32)
            total += weights[part].to(tl.float32) * value[None, :]
        result = tl.sum(total, axis=1)
        if normed:
            result *= tl.rsqrt(tl.sum(squares, axis=0) / inputs + eps)
        if gated:
            gate, up = tl.split(tl.reshape(result, (tile_outputs // 2, 2)))
            result = gate / (1.0 + tl.exp(-gate)) * up
        if added:
            result += before
        tl.store(out + at, result.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["rows"])
def _tiled_kernel(
    x,
    weight,
    out,
    rows,
    x_row_stride,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    splits: tl.constexpr,
    width: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_outputs: tl.constexpr,
    gated: tl.constexpr,
    pdl: tl.constexpr,
):
    """One tile of `linear(x)`, or of SiLU(even outputs) * odd outputs, or of one of its `splits`
    partial sums.
    """
    start_successor(pdl)
    part: tl.constexpr = inputs // splits
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(1) * tile_outputs + tl.arange(0, tile_outputs)
    split = tl.program_id(2)
    first = weight + column[:, None] * inputs + split * part
    if pdl:
        # Weights reach the second-level cache while the kernel before still runs.
        line = tl.arange(0, width // 64) * 64
        for i in tl.static_range(part // width):
            tl.inline_asm_elementwise(
                "prefetch.global.L2 [$1]; mov.u32 $0, 0;", "=r,l",
                [(first + i * width + line[None, :]).to(tl.int64)],
                dtype=tl.int32, is_pure=False, pack=1,
            )  # fmt: skip
    await_predecessor(pdl)
    inside = row < rows
    inner = tl.arange(0, width)
    total = tl.zeros([tile_rows, tile_outputs], tl.float32)
    values = x + row[:, None] * x_row_stride + split * part + inner[None, :]
    weights = first + inner[None, :]
    for i in range(part // width):
        value = tl.load(values + i * width, mask=inside[:, None], other=0.0, cache_modifier=".cg")
        total = tl.dot(value, tl.trans(tl.load(weights + i * width)), total, input_precision="ieee")
    if gated:
        gate, up = tl.split(tl.reshape(total, (tile_rows, tile_outputs // 2, 2)))
        total = gate / (1.0 + tl.exp(-gate)) * up
        column = tl.program_id(1) * (tile_outputs // 2) + tl.arange(0, tile_outputs // 2)
        at = row[:, None] * (outputs // 2) + column[None, :]
    else:
        at = (split * rows + row[:, None]) * outputs + column[None, :]
    tl.store(out + at, total.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=["rows"])
def _add_norm_kernel(
    x, delta, norm, out, rows, eps, hidden: tl.constexpr, splits: tl.constexpr, pdl: tl.constexpr
):
    """One row of `x += sum of delta's partial sums` and of its RMSNorm."""
    start_successor(pdl)
    at = tl.program_id(0) * hidden + tl.arange(0, hidden)
    weight = tl.load(norm + tl.arange(0, hidden)).to(tl.float32)
    await_predecessor(pdl)
    value = tl.load(x + at, cache_modifier=".cg").to(tl.float32)
    for i in tl.static_range(splits):
        value += tl.load(delta + i * rows * hidden + at, cache_modifier=".cg").to(tl.float32)
    if splits > 0:
        tl.store(x + at, value.to(x.dtype.element_ty))
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / hidden + eps)
    tl.store(out + at, (value * scale * weight).to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["total"])
def _swiglu_kernel(pairs, out, total, block: tl.constexpr, pdl: tl.constexpr):
    """SiLU(even) * odd."""
    start_successor(pdl)
    index = tl.program_id(0) * block + tl.arange(0, block)
    await_predecessor(pdl)
    both = tl.arange(0, 2 * block) + tl.program_id(0) * 2 * block
    value = tl.load(pairs + both, mask=both < 2 * total, other=0.0, cache_modifier=".cg")
    gate, up = tl.split(tl.reshape(value.to(tl.float32), (block, 2)))
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + index, result.to(out.dtype.element_ty), mask=index < total)


def vector_linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    tile_outputs: int,
    norm: tuple[Tensor, float] | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    pdl: bool = False,
) -> Tensor:
    """Write `[residual +] [rms_norm](x) @ weight.T` to `out`, for a few rows.

    Args:
        x: [rows, inputs], the last dimension contiguous.
        weight: [outputs, inputs].
        out: [rows, outputs], or half as many if `gated`; contiguous.
        tile_outputs: outputs that one program makes, a power of two that divides them.
        norm: weight and epsilon of an RMSNorm of x.
        residual: like `out`, which it may be; added last.
        gated: gate and up outputs alternate; the result is SiLU(gate) * up.
        pdl: start while the kernel before still runs.
    """
    outputs, inputs = weight.shape
    width = min(inputs & -inputs, _VECTOR_WIDTH)
    _vector_kernel[(outputs // tile_outputs,)](
        x,
        weight if norm is None else norm[0],
        weight,
        out if residual is None else residual,
        out,
        x.stride(0),
        0.0 if norm is None else norm[1],
        len(x),
        inputs,
        outputs,
        width,
        tile_outputs,
        norm is not None,
        gated,
        residual is not None,
        pdl,
        **launch_options(max(1, width // _WARP_LOAD), pdl, _VECTOR_REGISTERS),
    )
    return out


def tiled_linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    tile_outputs: int,
    splits: int = 1,
    stages: int = 4,
    gated: bool = False,
    pdl: bool = False,
    tile_rows: int | None = None,
) -> Tensor:
    """Write `x @ weight.T` to `out` [splits, rows, outputs], as partial sums; for tens of rows.

    Args:
        x: [rows, inputs], the last dimension contiguous.
        weight: [outputs, inputs].
        out: contiguous; half as many outputs if `gated`.
        tile_outputs: outputs that one program makes, a power of two that divides them.
        splits: equal parts of the inner dimension.
        stages: tiles in shared memory at once, at most.
        gated: as for `vector_linear`; then no splits.
        pdl: as for `vector_linear`.
        tile_rows: rows of a program; None: as suits their number. The order in which a matrix unit
            sums depends on it, so that a row has the same result in any batch only if it is given.
    """
    rows, (outputs, inputs) = len(x), weight.shape
    if tile_rows is None:
        tile_rows = min(max(16, triton.next_power_of_2(rows)), _TILED_ROWS)
    part = inputs // splits
    width = min(part & -part, _TILED_WIDTH)
    grid = (triton.cdiv(rows, tile_rows), outputs // tile_outputs, splits)
    _tiled_kernel[grid](
        x, weight, out, rows, x.stride(0), inputs, outputs, splits, width, tile_rows, tile_outputs,
        gated, pdl, **launch_options(_TILED_WARPS, pdl, stages=min(stages, part // width + 1)),
    )  # fmt: skip
    return out


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, pdl: bool = False
) -> Tensor:
    """Add `delta` [splits, rows, hidden] to `x` in place and return the RMSNorm of the sum."""
    out = torch.empty_like(x)
    splits = 0 if delta is None else delta.numel() // x.numel()
    _add_norm_kernel[(x.shape[0],)](
        x, x if delta is None else delta, weight, out, len(x), eps, x.shape[1], splits, pdl,
        **launch_options(4, pdl),
    )  # fmt: skip
    return out


def swiglu(pairs: Tensor, pdl: bool = False) -> Tensor:
    """SiLU(gate) * up of alternating gate and up columns; [rows, 2 * n] to [rows, n]."""
    out = pairs.new_empty(pairs.shape[0], pairs.shape[1] // 2)
    _swiglu_kernel[(triton.cdiv(out.numel(), _ELEMENTWISE_BLOCK),)](
        pairs, out, out.numel(), _ELEMENTWISE_BLOCK, pdl, **launch_options(4, pdl)
    )
    return out


def alternate(gate_up: Tensor) -> Tensor:
    """Gate rows and up rows in turn, so that a tile of outputs holds whole pairs."""
    gate, up = gate_up.chunk(2)
    return torch.stack((gate, up), dim=1).flatten(0, 1)
