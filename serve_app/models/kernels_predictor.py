"""Triton kernels of a code predictor's attention, one per layer, and sampling, one per code group.

Activations are read after the kernel before has ended (`kernels_launch`), past the L1 cache.
Everything but inputs, caches and results is float32. The eager references are `code_predictor` and
`sampling`; tests/gpu/test_fast_code_predictor.py compares them.
"""

# Triton's decorator keeps the annotation tl.constexpr, which callers meet with plain integers.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from serve_app.models.kernels_launch import await_predecessor, launch_options, start_successor

# Constants of the splitmix64 finaliser, as in `sampling`.
_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


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
    start_successor(pdl)
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
    await_predecessor(pdl)
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
    await_predecessor(pdl)
    start_successor(pdl)
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
        **launch_options(warps, pdl),
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
        **launch_options(warps, pdl),
    )
