"""Triton kernels of one code predictor frame: few launches, each weight read once and early.

Matrix products keep a whole tile of weights in registers, so that under programmatic dependent
launch (`pdl`) the weights are on their way while the kernel before still runs. Activations are read
after that kernel has ended, past the L1 cache. Rounding to the weights' dtype happens once per
product input; everything else is float32. The order of a sum depends on shapes, not on the batch.
The eager reference is `code_predictor`; tests/gpu/test_fast_code_predictor.py compares them.
"""

# Triton's decorator keeps the annotation tl.constexpr, which callers meet with plain integers.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

# The warps of a product share out its inner dimension, one chunk each.
_LINEAR_WARPS = 8
_SMALLEST_CHUNK = 16
# Lets two programs of small tiles share a multiprocessor: one loads weights while the other ends.
_LINEAR_REGISTERS = 128
# A warp's 32 threads take 16 bytes each: with inner dimensions of 1024 or 2048, a thread's part of
# x is its part of every weight row.
_WARP_LOAD = 256
_VECTOR_WIDTH = 2048
_TILED_ROWS = 64
_TILED_WIDTH = 128
_TILED_WARPS = 4
_ELEMENTWISE_BLOCK = 1024

# Constants of the splitmix64 finaliser, as in `sampling`.
_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


@triton.jit
def _start_successor(pdl: tl.constexpr):
    """Let the next kernel start: what it reads before `_await_predecessor` is never written."""
    if pdl:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def _await_predecessor(pdl: tl.constexpr):
    """Wait until all kernels before have ended; every program must, since the next rely on it."""
    if pdl:
        tl.extra.cuda.gdc_wait()


@triton.jit(do_not_specialize=["rows"])
def _linear_kernel(
    x,
    norm,
    weight,
    residual,
    out,
    rows,
    x_row_stride,
    eps,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    parts: tl.constexpr,
    chunks: tl.constexpr,
    tile_rows: tl.constexpr,
    tile_outputs: tl.constexpr,
    normed: tl.constexpr,
    gated: tl.constexpr,
    added: tl.constexpr,
    pdl: tl.constexpr,
):
    """One tile of `[residual +] linear([rms_norm](x))`, or of SiLU(even outputs) * odd outputs.

    The inner dimension is `parts` x `chunks` x width. The norm's scale is applied to the sum, so
    its input is rounded once, after the norm's weight.
    """
    _start_successor(pdl)
    width: tl.constexpr = inputs // (parts * chunks)
    row = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)
    column = tl.program_id(1) * tile_outputs + tl.arange(0, tile_outputs)
    inner = tl.arange(0, chunks)[:, None, None] * width + tl.arange(0, width)[None, None, :]
    weights = ()
    norms = ()
    for part in tl.static_range(parts):
        at = part * chunks * width + inner
        weights = weights + (tl.load(weight + column[None, :, None] * inputs + at),)  # noqa: RUF005
        if normed:
            norms = norms + (tl.load(norm + at),)  # noqa: RUF005
    _await_predecessor(pdl)
    inside = row < rows
    total = tl.zeros([chunks, tile_rows, tile_outputs], tl.float32)
    squares = tl.zeros([chunks, tile_rows], tl.float32)
    for part in tl.static_range(parts):
        at = row[None, :, None] * x_row_stride + part * chunks * width + inner
        value = tl.load(x + at, mask=inside[None, :, None], other=0.0, cache_modifier=".cg")
        if normed:
            wide = value.to(tl.float32)
            squares += tl.sum(wide * wide, axis=2)
            value = (wide * norms[part].to(tl.float32)).to(weight.dtype.element_ty)
        turned = tl.trans(weights[part], (0, 2, 1))
        total = tl.dot(value, turned, total, input_precision="ieee")
    result = tl.sum(total, axis=0)
    if normed:
        result *= tl.rsqrt(tl.sum(squares, axis=0) / inputs + eps)[:, None]
    if gated:
        pairs = tl.reshape(result, (tile_rows, tile_outputs // 2, 2))
        gate, up = tl.split(pairs)
        result = gate / (1.0 + tl.exp(-gate)) * up
        column = tl.program_id(1) * (tile_outputs // 2) + tl.arange(0, tile_outputs // 2)
        at = row[:, None] * (outputs // 2) + column[None, :]
    else:
        at = row[:, None] * outputs + column[None, :]
    if added:
        before = tl.load(residual + at, mask=inside[:, None], other=0.0, cache_modifier=".cg")
        result += before.to(tl.float32)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside[:, None])


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
    """`_linear_kernel` for a few rows, without matrix units: nothing goes through shared memory
    but one sum per warp, since a thread holds the same places of x and of each weight row.
    """
    _start_successor(pdl)
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
    _await_predecessor(pdl)
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
    _start_successor(pdl)
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
    _await_predecessor(pdl)
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


@triton.jit
def _rotated(low, high, low_norm, high_norm, c, s, eps, half: tl.constexpr):
    """RMSNorm and rotary embedding of vectors whose halves are `low` and `high` ([..., half])."""
    axis: tl.constexpr = len(low.shape) - 1
    square = tl.sum(low * low + high * high, axis=axis, keep_dims=True)
    scale = tl.rsqrt(square / (2 * half) + eps)
    low = low * scale * low_norm
    high = high * scale * high_norm
    return low * c - high * s, high * c + low * s


@triton.jit(do_not_specialize=["start"])
def _attention_kernel(
    qkv,
    q_norm,
    k_norm,
    cos,
    sin,
    keys,
    values,
    out,
    start,
    eps,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    head_dim: tl.constexpr,
    positions: tl.constexpr,
    fresh: tl.constexpr,
    pdl: tl.constexpr,
):
    """Norm, rotate, append to the cache and attend, for one stream and one key/value head.

    Older keys are read early: `_sample_kernel` lets the pass after it start only when the kernels
    that wrote them have ended.
    """
    _start_successor(pdl)
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    group: tl.constexpr = heads // kv_heads
    half: tl.constexpr = head_dim // 2
    d = tl.arange(0, half)
    whole = tl.arange(0, head_dim)
    g = tl.arange(0, group)
    place = tl.arange(0, positions)
    past = (place < start)[:, None]
    head = (row * kv_heads + kv_head) * positions * head_dim
    line = head + place[:, None] * head_dim
    k_low = tl.load(keys + line + d[None, :], mask=past, other=0.0, cache_modifier=".cg")
    k_high = tl.load(keys + line + half + d[None, :], mask=past, other=0.0, cache_modifier=".cg")
    v = tl.load(values + line + whole[None, :], mask=past, other=0.0, cache_modifier=".cg")
    k_norm_low = tl.load(k_norm + d).to(tl.float32)
    k_norm_high = tl.load(k_norm + half + d).to(tl.float32)
    q_norm_low = tl.load(q_norm + d).to(tl.float32)[None, :]
    q_norm_high = tl.load(q_norm + half + d).to(tl.float32)[None, :]
    cosines = ()
    sines = ()
    for i in tl.static_range(fresh):
        at = (start + i) * half + d
        cosines = cosines + (tl.load(cos + at),)  # noqa: RUF005
        sines = sines + (tl.load(sin + at),)  # noqa: RUF005
    _await_predecessor(pdl)
    for i in tl.static_range(fresh):
        position = start + i
        here = (place == position)[:, None]
        source = qkv + (row * fresh + i) * (heads + 2 * kv_heads) * head_dim
        k_source = source + (heads + kv_head) * head_dim
        q_source = source + (kv_head * group + g[:, None]) * head_dim + d[None, :]
        low = tl.load(k_source + d, cache_modifier=".cg").to(tl.float32)
        high = tl.load(k_source + half + d, cache_modifier=".cg").to(tl.float32)
        mine = tl.load(k_source + kv_heads * head_dim + whole, cache_modifier=".cg").to(v.dtype)
        q_low = tl.load(q_source, cache_modifier=".cg").to(tl.float32)
        q_high = tl.load(q_source + half, cache_modifier=".cg").to(tl.float32)
        c = cosines[i]
        s = sines[i]
        low, high = _rotated(low, high, k_norm_low, k_norm_high, c, s, eps, half)
        low = low.to(k_low.dtype)
        high = high.to(k_low.dtype)
        target = head + position * head_dim
        tl.store(keys + target + d, low)
        tl.store(keys + target + half + d, high)
        tl.store(values + target + whole, mine)
        k_low = tl.where(here, low[None, :], k_low)
        k_high = tl.where(here, high[None, :], k_high)
        v = tl.where(here, mine[None, :], v)
        c, s = c[None, :], s[None, :]
        low, high = _rotated(q_low, q_high, q_norm_low, q_norm_high, c, s, eps, half)
        scores = tl.sum(
            low[:, None, :] * k_low[None, :, :].to(tl.float32)
            + high[:, None, :] * k_high[None, :, :].to(tl.float32),
            axis=2,
        )
        scores = tl.where(place[None, :] <= position, scores, float("-inf"))
        scores *= 1.0 / tl.sqrt(head_dim * 1.0)
        weights = tl.exp(scores - tl.max(scores, axis=1, keep_dims=True))
        weights /= tl.sum(weights, axis=1, keep_dims=True)
        attended = tl.sum(weights[:, :, None] * v[None, :, :].to(tl.float32), axis=1)
        result = out + (row * fresh + i) * heads * head_dim
        result += (kv_head * group + g[:, None]) * head_dim + whole[None, :]
        tl.store(result, attended.to(out.dtype.element_ty))


@triton.jit
def _mix(x):
    x = (x ^ (x >> 30)) * _MIX_1
    x = (x ^ (x >> 27)) * _MIX_2
    return x ^ (x >> 31)


@triton.jit
def _combine_range(best, low, count, other_best, other_low, other_count):
    return tl.maximum(best, other_best), tl.minimum(low, other_low), count + other_count


@triton.jit
def _combine_places(last, first, other_last, other_first):
    return tl.maximum(last, other_last), tl.minimum(first, other_first)


@triton.jit(do_not_specialize=["group", "column"])
def _sample_kernel(
    logits,
    seeds,
    frames,
    temperatures,
    top_ks,
    top_ps,
    codes,
    table,
    following,
    group,
    column,
    num_codes,
    vocab: tl.constexpr,
    block: tl.constexpr,
    hidden: tl.constexpr,
    feeds: tl.constexpr,
    pdl: tl.constexpr,
):
    """`sampling.sample` of one row, and the next input row that the code stands for."""
    row = tl.program_id(0)
    index = tl.arange(0, block)
    inside = index < vocab
    temperature = tl.load(temperatures + row)
    wanted = tl.load(top_ks + row).to(tl.int32)
    top_p = tl.load(top_ps + row)
    x = tl.load(seeds + row).to(tl.uint64, bitcast=True)
    frame = tl.load(frames + row).to(tl.uint64, bitcast=True)
    x = _mix(_mix(_mix(x + _GAMMA) + frame) * _GAMMA + group.to(tl.uint64))
    u = ((x >> 41).to(tl.float32) + 0.5) * 1.1920928955078125e-07
    _await_predecessor(pdl)
    _start_successor(pdl)
    value = tl.load(
        logits + row * vocab + index, mask=inside, other=float("-inf"), cache_modifier=".cg"
    )
    code = tl.full((), 0, tl.int32)
    if temperature > 0:
        value = tl.div_rn(value, tl.zeros_like(value) + temperature)
        wanted = tl.where((wanted > 0) & (wanted < vocab), wanted, vocab)
        allowed = value > float("-inf")
        lowest = tl.where(allowed, value, float("inf"))
        best, low, count = tl.reduce((value, lowest, allowed.to(tl.int32)), 0, _combine_range)
        # Search for the wanted-th best: `low` keeps at least that many, `high` fewer. The counts
        # at three places between them share one sum.
        high = best + tl.maximum(tl.abs(best) * 1e-6, 1e-30)
        middle = low + (high - low) * 0.5
        while (count > wanted) & (low < middle) & (middle < high):
            lower = low + (middle - low) * 0.5
            upper = middle + (high - middle) * 0.5
            found = (value >= lower).to(tl.int64) + ((value >= middle).to(tl.int64) << 16)
            found = tl.sum(found + ((value >= upper).to(tl.int64) << 32), axis=0)
            for place in tl.static_range(3):
                here = ((found >> (16 * place)) & 0xFFFF).to(tl.int32)
                if place == 0:
                    at = lower
                elif place == 1:
                    at = middle
                else:
                    at = upper
                enough = here >= wanted
                count = tl.where(enough, here, count)
                low = tl.where(enough, at, low)
                high = tl.where(enough, high, tl.minimum(high, at))
            middle = low + (high - low) * 0.5
        weights = tl.where(inside & (value >= low), tl.exp(value - best), 0.0)
        if top_p < 1.0:
            # Bisect for the smallest value with less than top_p of the mass strictly above it:
            # `high` has.
            limit = top_p * tl.sum(weights, axis=0)
            high = best
            middle = low
            if tl.sum(tl.where(value > low, weights, 0.0), axis=0) < limit:
                high = low
            else:
                middle = low + (high - low) * 0.5
            while (low < middle) & (middle < high):
                above = tl.sum(tl.where(value > middle, weights, 0.0), axis=0)
                fits = above < limit
                high = tl.where(fits, middle, high)
                low = tl.where(fits, low, middle)
                middle = low + (high - low) * 0.5
            weights = tl.where(value >= high, weights, 0.0)
        cumulative = tl.cumsum(weights, axis=0)
        target = u * tl.max(cumulative, axis=0)
        possible = weights > 0
        ends = (
            tl.where(possible, index, 0),
            tl.where(possible & (cumulative > target), index, vocab),
        )
        last, drawn = tl.reduce(ends, 0, _combine_places)
        code = tl.minimum(drawn, last)
    else:
        code = tl.argmax(value, axis=0).to(tl.int32)
    tl.store(codes + row * num_codes + column, code.to(tl.int64))
    if feeds:
        h = tl.arange(0, hidden)
        tl.store(following + row * hidden + h, tl.load(table + code * hidden + h))


@triton.jit(do_not_specialize=["rows"])
def _add_norm_kernel(
    x, delta, norm, out, rows, eps, hidden: tl.constexpr, splits: tl.constexpr, pdl: tl.constexpr
):
    """One row of `x += sum of delta's partial sums` and of its RMSNorm."""
    _start_successor(pdl)
    at = tl.program_id(0) * hidden + tl.arange(0, hidden)
    weight = tl.load(norm + tl.arange(0, hidden)).to(tl.float32)
    _await_predecessor(pdl)
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
    _start_successor(pdl)
    index = tl.program_id(0) * block + tl.arange(0, block)
    _await_predecessor(pdl)
    both = tl.arange(0, 2 * block) + tl.program_id(0) * 2 * block
    value = tl.load(pairs + both, mask=both < 2 * total, other=0.0, cache_modifier=".cg")
    gate, up = tl.split(tl.reshape(value.to(tl.float32), (block, 2)))
    result = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + index, result.to(out.dtype.element_ty), mask=index < total)


def _options(
    num_warps: int, pdl: bool, registers: int | None = None, stages: int | None = None
) -> dict[str, int]:
    options = {"num_warps": num_warps}
    if stages is not None:
        options["num_stages"] = stages
    if pdl:
        options["launch_pdl"] = True
    if registers is not None:
        options["maxnreg"] = registers
    return options


def _split(inputs: int, width: int) -> tuple[int, int]:
    """Parts and chunks of an inner dimension: a chunk is a power of two, `width` at most."""
    power = inputs & -inputs
    chunks = max(1, min(_LINEAR_WARPS, power // _SMALLEST_CHUNK))
    return inputs // (chunks * min(width, power // chunks)), chunks


def linear(
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    tile_rows: int,
    tile_outputs: int,
    width: int,
    norm: tuple[Tensor, float] | None = None,
    residual: Tensor | None = None,
    gated: bool = False,
    pdl: bool = False,
) -> Tensor:
    """Write `[residual +] [rms_norm](x) @ weight.T` to `out`, which may be `residual`.

    Args:
        x: [rows, inputs], the last dimension contiguous.
        weight: [outputs, inputs].
        out: [rows, outputs], or half as many if `gated`; contiguous.
        residual: like `out`, added last.
        gated: gate and up outputs alternate; the result is SiLU(gate) * up.
        tile_rows: rows that one program makes, a power of two.
        tile_outputs: outputs that one program makes, a power of two that divides them.
        width: inner values that a warp takes at once, at most.
        norm: weight and epsilon of an RMSNorm of x.
        pdl: start while the kernel before still runs.
    """
    rows, (outputs, inputs) = x.shape[0], weight.shape
    parts, chunks = _split(inputs, width)
    _linear_kernel[triton.cdiv(rows, tile_rows), outputs // tile_outputs](
        x,
        weight if norm is None else norm[0],
        weight,
        out if residual is None else residual,
        out,
        rows,
        x.stride(0),
        0.0 if norm is None else norm[1],
        inputs,
        outputs,
        parts,
        chunks,
        tile_rows,
        tile_outputs,
        norm is not None,
        gated,
        residual is not None,
        pdl,
        **_options(_LINEAR_WARPS, pdl, _LINEAR_REGISTERS if tile_rows <= 16 else None),
    )
    return out


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
    """`linear` for a few rows."""
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
        **_options(max(1, width // _WARP_LOAD), pdl, _LINEAR_REGISTERS),
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
) -> Tensor:
    """`linear` for tens of rows; `out` [splits, rows, outputs] receives partial sums.

    Args:
        x: [rows, inputs], the last dimension contiguous.
        weight: [outputs, inputs].
        out: contiguous; half as many outputs if `gated`.
        tile_outputs: outputs that one program makes, a power of two that divides them.
        splits: equal parts of the inner dimension.
        stages: tiles in shared memory at once, at most.
        gated: as for `linear`; then no splits.
        pdl: as for `linear`.
    """
    rows, (outputs, inputs) = len(x), weight.shape
    tile_rows = min(max(16, triton.next_power_of_2(rows)), _TILED_ROWS)
    part = inputs // splits
    width = min(part & -part, _TILED_WIDTH)
    grid = (triton.cdiv(rows, tile_rows), outputs // tile_outputs, splits)
    _tiled_kernel[grid](
        x, weight, out, rows, x.stride(0), inputs, outputs, splits, width, tile_rows, tile_outputs,
        gated, pdl, **_options(_TILED_WARPS, pdl, stages=min(stages, part // width + 1)),
    )  # fmt: skip
    return out


def attend(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    rotary: tuple[Tensor, Tensor],
    cache: Tensor,
    start: int,
    out: Tensor,
    warps: int,
    pdl: bool = False,
) -> Tensor:
    """Append the new positions to the cache and attend to all; writes and returns `out`.

    Args:
        qkv: [streams * fresh, (heads + 2 * kv_heads) * head_dim], fresh = 1 or 2 new positions.
        q_norm: [head_dim].
        k_norm: [head_dim].
        eps: of both norms.
        start: the first new position.
        warps: per program.
        pdl: overlap the start with the end of the kernel before.
        rotary: float32 cosines and sines [positions, head_dim / 2].
        cache: [2, streams, kv_heads, positions, head_dim].
        out: [streams * fresh, heads * head_dim].
    """
    _, streams, kv_heads, positions, head_dim = cache.shape
    _attention_kernel[streams, kv_heads](
        qkv,
        q_norm,
        k_norm,
        *rotary,
        cache[0],
        cache[1],
        out,
        start,
        eps,
        out.shape[1] // head_dim,
        kv_heads,
        head_dim,
        positions,
        qkv.shape[0] // streams,
        pdl,
        **_options(warps, pdl),
    )
    return out


def sample_row(
    logits: Tensor,
    seed: Tensor,
    frame: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    group: int,
    column: int,
    codes: Tensor,
    table: Tensor | None = None,
    following: Tensor | None = None,
    warps: int = 4,
    pdl: bool = False,
) -> None:
    """Draw the codes of one group as `sampling` does; fetch the rows of `table` they stand for.

    Args:
        logits: float32 [B, vocab]; -inf marks forbidden codes.
        seed: [B], as the others see FrameBatch.
        frame: [B].
        temperature: [B].
        top_k: [B].
        top_p: [B].
        group: code group of the draw.
        column: where in `codes` the draw goes.
        codes: int64 [B, n].
        table: [vocab, hidden]; None where nothing follows.
        following: [B, hidden], receives the rows; None with `table`.
        warps: per program.
        pdl: overlap the start with the end of the kernel before.
    """
    rows, vocab = logits.shape
    _sample_kernel[(rows,)](
        logits,
        seed,
        frame,
        temperature,
        top_k,
        top_p,
        codes,
        codes if table is None else table,
        codes if following is None else following,
        group,
        column,
        codes.shape[1],
        vocab,
        triton.next_power_of_2(vocab),
        1 if following is None else following.shape[1],
        table is not None,
        pdl,
        **_options(warps, pdl),
    )


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, pdl: bool = False
) -> Tensor:
    """Add `delta` [splits, rows, hidden] to `x` in place and return the RMSNorm of the sum."""
    out = torch.empty_like(x)
    splits = 0 if delta is None else delta.numel() // x.numel()
    _add_norm_kernel[(x.shape[0],)](
        x, x if delta is None else delta, weight, out, len(x), eps, x.shape[1], splits, pdl,
        **_options(4, pdl),
    )  # fmt: skip
    return out


def swiglu(pairs: Tensor, pdl: bool = False) -> Tensor:
    """SiLU(gate) * up of alternating gate and up columns; [rows, 2 * n] to [rows, n]."""
    out = pairs.new_empty(pairs.shape[0], pairs.shape[1] // 2)
    _swiglu_kernel[(triton.cdiv(out.numel(), _ELEMENTWISE_BLOCK),)](
        pairs, out, out.numel(), _ELEMENTWISE_BLOCK, pdl, **_options(4, pdl)
    )
    return out
