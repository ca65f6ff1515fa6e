"""Triton kernels of one code predictor frame: few launches, each weight read once and early.

Matrix products keep a whole tile of weights in registers, so that under programmatic dependent
launch (`pdl`) the weights are on their way while the kernel before still runs. Activations are read
after that kernel has ended, past the L1 cache. Rounding to the weights' dtype happens once per
product input; everything else is float32. The order of a sum depends on shapes, not on the batch.
The eager reference is `code_predictor`; tests/gpu/test_fast_code_predictor.py compares them.
"""

# Triton's decorator keeps the annotation tl.constexpr, which callers meet with plain integers.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

# The warps of a product share out its inner dimension, one chunk each.
_LINEAR_WARPS = 8
_SMALLEST_CHUNK = 16
# Lets two programs of small tiles share a multiprocessor: one loads weights while the other ends.
_LINEAR_REGISTERS = 128
_ATTENTION_WARPS = 2
_SAMPLE_WARPS = 4
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
    its input is
    rounded once, after the norm's weight.
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
def _rotated(low, high, norm, cos, sin, offset, eps, half: tl.constexpr):
    """RMSNorm and rotary embedding of vectors whose halves are `low` and `high` ([..., half])."""
    axis: tl.constexpr = len(low.shape) - 1
    square = tl.sum(low * low + high * high, axis=axis, keep_dims=True)
    scale = tl.rsqrt(square / (2 * half) + eps)
    d = tl.arange(0, half)
    low = low * scale * tl.load(norm + d).to(tl.float32)
    high = high * scale * tl.load(norm + half + d).to(tl.float32)
    c = tl.load(cos + offset + d)
    s = tl.load(sin + offset + d)
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
    """Norm, rotate, append to the cache and attend, for one stream and one key/value head."""
    _start_successor(pdl)
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    group: tl.constexpr = heads // kv_heads
    half: tl.constexpr = head_dim // 2
    d = tl.arange(0, half)
    whole = tl.arange(0, head_dim)
    g = tl.arange(0, group)
    place = tl.arange(0, positions)
    _await_predecessor(pdl)
    past = (place < start)[:, None]
    head = (row * kv_heads + kv_head) * positions * head_dim
    line = head + place[:, None] * head_dim
    k_low = tl.load(keys + line + d[None, :], mask=past, other=0.0, cache_modifier=".cg")
    k_high = tl.load(keys + line + half + d[None, :], mask=past, other=0.0, cache_modifier=".cg")
    v = tl.load(values + line + whole[None, :], mask=past, other=0.0, cache_modifier=".cg")
    for i in tl.static_range(fresh):
        position = start + i
        here = (place == position)[:, None]
        source = qkv + (row * fresh + i) * (heads + 2 * kv_heads) * head_dim
        k_source = source + (heads + kv_head) * head_dim
        low = tl.load(k_source + d, cache_modifier=".cg").to(tl.float32)
        high = tl.load(k_source + half + d, cache_modifier=".cg").to(tl.float32)
        low, high = _rotated(low, high, k_norm, cos, sin, position * half, eps, half)
        low = low.to(k_low.dtype)
        high = high.to(k_low.dtype)
        mine = tl.load(k_source + kv_heads * head_dim + whole, cache_modifier=".cg").to(v.dtype)
        target = head + position * head_dim
        tl.store(keys + target + d, low)
        tl.store(keys + target + half + d, high)
        tl.store(values + target + whole, mine)
        k_low = tl.where(here, low[None, :], k_low)
        k_high = tl.where(here, high[None, :], k_high)
        v = tl.where(here, mine[None, :], v)
        q_source = source + (kv_head * group + g[:, None]) * head_dim + d[None, :]
        low = tl.load(q_source, cache_modifier=".cg").to(tl.float32)
        high = tl.load(q_source + half, cache_modifier=".cg").to(tl.float32)
        low, high = _rotated(low, high, q_norm, cos, sin, position * half, eps, half)
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
    _start_successor(pdl)
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
    value = tl.load(
        logits + row * vocab + index, mask=inside, other=float("-inf"), cache_modifier=".cg"
    )
    code = tl.argmax(value, axis=0).to(tl.int32)
    if temperature > 0:
        value = tl.div_rn(value, tl.zeros_like(value) + temperature)
        best = tl.max(value, axis=0)
        # Bisect for the wanted-th best: `low` keeps at least that many, `high` fewer.
        wanted = tl.where((wanted > 0) & (wanted < vocab), wanted, vocab)
        allowed = value > float("-inf")
        low = tl.min(tl.where(allowed, value, float("inf")), axis=0)
        high = best + tl.maximum(tl.abs(best) * 1e-6, 1e-30)
        count = tl.sum(allowed.to(tl.int32), axis=0)
        middle = low + (high - low) * 0.5
        while (count > wanted) & (low < middle) & (middle < high):
            found = tl.sum((value >= middle).to(tl.int32), axis=0)
            enough = found >= wanted
            count = tl.where(enough, found, count)
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
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
        last = tl.max(tl.where(possible, index, 0), axis=0)
        drawn = tl.min(tl.where(possible & (cumulative > target), index, vocab), axis=0)
        code = tl.minimum(drawn, last)
    tl.store(codes + row * num_codes + column, code.to(tl.int64))
    if feeds:
        h = tl.arange(0, hidden)
        tl.store(following + row * hidden + h, tl.load(table + code * hidden + h))


@triton.jit
def _add_norm_kernel(
    x, delta, norm, out, eps, hidden: tl.constexpr, added: tl.constexpr, pdl: tl.constexpr
):
    """One row of `x += delta` and of its RMSNorm."""
    _start_successor(pdl)
    at = tl.program_id(0) * hidden + tl.arange(0, hidden)
    weight = tl.load(norm + tl.arange(0, hidden)).to(tl.float32)
    _await_predecessor(pdl)
    value = tl.load(x + at, cache_modifier=".cg").to(tl.float32)
    if added:
        value += tl.load(delta + at, cache_modifier=".cg").to(tl.float32)
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


def _options(num_warps: int, pdl: bool, registers: int | None = None) -> dict[str, int]:
    options = {"num_warps": num_warps}
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


def attend(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    rotary: tuple[Tensor, Tensor],
    cache: Tensor,
    start: int,
    out: Tensor,
    pdl: bool = False,
) -> Tensor:
    """Append the new positions to the cache and attend to all; writes and returns `out`.

    Args:
        qkv: [streams * fresh, (heads + 2 * kv_heads) * head_dim], fresh = 1 or 2 new positions.
        q_norm: [head_dim].
        k_norm: [head_dim].
        eps: of both norms.
        start: the first new position.
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
        **_options(_ATTENTION_WARPS, pdl),
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
        **_options(_SAMPLE_WARPS, pdl),
    )


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, pdl: bool = False
) -> Tensor:
    """Add `delta` to `x` in place and return the RMSNorm of the sum; [rows, hidden]."""
    out = torch.empty_like(x)
    _add_norm_kernel[(x.shape[0],)](
        x, x if delta is None else delta, weight, out, eps, x.shape[1], delta is not None, pdl,
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
