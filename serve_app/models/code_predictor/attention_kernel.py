"""Triton kernel of a code predictor's attention, one launch per layer.

Activations are read after the kernel before has ended (`layers.launch`), past the L1 cache.
Everything but inputs, caches and results is float32. The eager reference is `model`;
tests/gpu/test_fast_code_predictor.py compares them.
"""

# Triton's decorator keeps the annotation tl.constexpr, which callers meet with plain integers.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from serve_app.models.layers.launch import await_predecessor, launch_options, start_successor


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

    Older keys are read early: `sampling_kernel` lets the pass after it start only when the kernels
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
