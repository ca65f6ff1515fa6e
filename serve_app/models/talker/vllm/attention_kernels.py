"""Triton kernels between the talker's projections: heads made ready and stored, then attended.

Two launches per layer take the place of six of vLLM's (two norms, rotary embedding, cache write,
attention and its combination). Every position is a query of its own over the keys up to itself,
so one kernel serves decoding, prefill and both mixed; it is meant for short prefills, as each query
of a prefill reads its keys again.
"""

# pyright: basic, reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
import torch
import triton
import triton.language as tl
from torch import Tensor

from serve_app.models.layers.launch import await_predecessor, launch_options, start_successor

# Heads made ready by one program, and keys read at a time by one of the attention.
_HEADS = 8
_KEYS = 64
# Requests that a program looks through, at least: with fewer there would be variants that no graph
# is captured with, and the first prefill of so many requests would wait for a compiler.
_LEAST_REQUESTS = 64
# Tensor cores want at least so many rows of queries; those that share keys are fewer.
_QUERY_ROWS = 16
_LOG2_E = 1.4426950408889634


@triton.jit
def _store_heads_kernel(
    qkv, q_norm, k_norm, rotary, positions, slots, keys, values,
    qkv_stride, rotary_stride, key_block_stride, key_stride, key_head_stride,
    value_block_stride, value_stride, value_head_stride, eps,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, block_size: tl.constexpr,
    dim: tl.constexpr, heads: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """Normalise and rotate `heads` query heads in place, or store as many key or value heads."""
    start_successor(pdl)
    token = tl.program_id(0)
    head = tl.program_id(1) * heads + tl.arange(0, heads)
    half: tl.constexpr = dim // 2
    column = tl.arange(0, half)
    slot = tl.load(slots + token)
    await_predecessor(pdl)
    if slot < 0:  # a padding row of a graph
        return
    block, offset = slot // block_size, slot % block_size
    at = qkv + token * qkv_stride + head[:, None] * dim + column[None, :]
    low = tl.load(at, cache_modifier=".cg")
    high = tl.load(at + half, cache_modifier=".cg")
    if tl.program_id(1) * heads < num_heads + num_kv_heads:
        is_query = tl.program_id(1) * heads < num_heads
        norm = q_norm if is_query else k_norm
        wide_low, wide_high = low.to(tl.float32), high.to(tl.float32)
        squares = tl.sum(wide_low * wide_low + wide_high * wide_high, axis=1)
        scale = tl.rsqrt(squares / dim + eps)[:, None]
        # Rounded where the reference rounds.
        dtype = low.dtype
        wide_low = (wide_low * scale).to(dtype).to(tl.float32)
        wide_high = (wide_high * scale).to(dtype).to(tl.float32)
        wide_low *= tl.load(norm + column)[None, :].to(tl.float32)
        wide_high *= tl.load(norm + half + column)[None, :].to(tl.float32)
        wide_low = wide_low.to(dtype).to(tl.float32)
        wide_high = wide_high.to(dtype).to(tl.float32)
        angle = rotary + tl.load(positions + token) * rotary_stride + column
        cos = tl.load(angle)[None, :].to(tl.float32)
        sin = tl.load(angle + half)[None, :].to(tl.float32)
        low = (wide_low * cos - wide_high * sin).to(dtype)
        high = (wide_high * cos + wide_low * sin).to(dtype)
        if is_query:
            tl.store(at, low)
            tl.store(at + half, high)
        else:
            target = keys + block * key_block_stride + offset * key_stride
            target += (head - num_heads)[:, None] * key_head_stride + column[None, :]
            tl.store(target, low)
            tl.store(target + half, high)
    else:
        target = values + block * value_block_stride + offset * value_stride
        target += (head - num_heads - num_kv_heads)[:, None] * value_head_stride + column[None, :]
        tl.store(target, low)
        tl.store(target + half, high)


@triton.jit(do_not_specialize=["num_requests"])
def _paged_attention_kernel(
    qkv, keys, values, blocks, starts, positions, slots, out, num_requests,
    qkv_stride, key_block_stride, key_stride, key_head_stride,
    value_block_stride, value_stride, value_head_stride, blocks_stride, scale,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, block_size: tl.constexpr,
    dim: tl.constexpr, num_keys: tl.constexpr, query_rows: tl.constexpr,
    most_requests: tl.constexpr, pdl: tl.constexpr,
):  # fmt: skip
    """One position, the query heads that share one key head."""
    start_successor(pdl)
    token = tl.program_id(0)
    kv_head = tl.program_id(1)
    group: tl.constexpr = num_heads // num_kv_heads
    row = tl.arange(0, query_rows)
    column = tl.arange(0, dim)
    head = kv_head * group + row
    mine = (row < group)[:, None]
    target = out + (token * num_heads + head[:, None]) * dim + column[None, :]
    index = tl.arange(0, most_requests)
    ends = tl.load(starts + 1 + index, mask=index < num_requests, other=2147483647)
    request = tl.sum((ends <= token).to(tl.int32))
    length = tl.load(positions + token).to(tl.int32) + 1
    slot = tl.load(slots + token)
    await_predecessor(pdl)
    if slot < 0:
        tl.store(target, tl.zeros([query_rows, dim], out.dtype.element_ty), mask=mine)
        return
    query = tl.load(
        qkv + token * qkv_stride + head[:, None] * dim + column[None, :],
        mask=mine,
        other=0.0,
        cache_modifier=".cg",
    )
    best = tl.full([query_rows], float("-inf"), tl.float32)
    norm = tl.zeros([query_rows], tl.float32)
    total = tl.zeros([query_rows, dim], tl.float32)
    for first in range(0, length, num_keys):
        position = first + tl.arange(0, num_keys)
        inside = position < length
        block = tl.load(
            blocks + request * blocks_stride + position // block_size, mask=inside, other=0
        ).to(tl.int64)
        offset = position % block_size
        key = tl.load(
            keys
            + (block * key_block_stride + offset * key_stride + kv_head * key_head_stride)[:, None]
            + column[None, :],
            mask=inside[:, None],
            other=0.0,
            cache_modifier=".cg",
        )
        value = tl.load(
            values
            + (block * value_block_stride + offset * value_stride + kv_head * value_head_stride)[
                :, None
            ]
            + column[None, :],
            mask=inside[:, None],
            other=0.0,
            cache_modifier=".cg",
        )
        scores = tl.dot(query, tl.trans(key)) * scale
        scores = tl.where(inside[None, :], scores, float("-inf"))
        higher = tl.maximum(best, tl.max(scores, axis=1))
        shrink = tl.exp2(best - higher)
        weights = tl.exp2(scores - higher[:, None])
        norm = norm * shrink + tl.sum(weights, axis=1)
        total = total * shrink[:, None] + tl.dot(weights.to(value.dtype), value)
        best = higher
    tl.store(target, (total / norm[:, None]).to(out.dtype.element_ty), mask=mine)


def store_heads(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rotary: Tensor,
    positions: Tensor,
    slots: Tensor,
    keys: Tensor,
    values: Tensor,
    eps: float,
    pdl: bool = False,
) -> None:
    """Normalise and rotate queries in place; store keys, made ready likewise, and values.

    Args:
        qkv: [N, (num_heads + 2 * num_kv_heads) * D], overwritten in its query part.
        q_norm: [D], RMS norm weight of the query heads.
        k_norm: [D], that of the key heads.
        rotary: [positions, D], cosines then sines of D / 2 angles.
        positions: int64 [N].
        slots: int64 [N], where in the cache; below 0 for rows to be left out.
        keys: [blocks, block_size, num_kv_heads, D], any strides but the last.
        values: as `keys`.
        eps: of both norms.
        pdl: start while the kernel before still runs, which must not be what writes `positions`
            and `slots`.
    """
    block_size, num_kv_heads, dim = keys.shape[1:]
    num_heads = qkv.shape[1] // dim - 2 * num_kv_heads
    heads = min(_HEADS, num_kv_heads)
    grid = (len(qkv), (num_heads + 2 * num_kv_heads) // heads)
    _store_heads_kernel[grid](
        qkv, q_norm, k_norm, rotary, positions, slots, keys, values,
        qkv.stride(0), rotary.stride(0), *keys.stride()[:3], *values.stride()[:3], eps,
        num_heads=num_heads, num_kv_heads=num_kv_heads, block_size=block_size, dim=dim,
        heads=heads, pdl=pdl, **launch_options(2, pdl),
    )  # fmt: skip


def attend(
    qkv: Tensor,
    keys: Tensor,
    values: Tensor,
    blocks: Tensor,
    starts: Tensor,
    positions: Tensor,
    slots: Tensor,
    pdl: bool = False,
) -> Tensor:
    """Attend from each position to itself and all before it.

    Args:
        qkv: as `store_heads` left it; only its queries are read.
        keys: as in `store_heads`.
        values: as `keys`.
        blocks: int32 [requests, blocks of a request], the cache blocks of each request.
        starts: int32 [requests + 1], the first position of each request, and the end.
        positions: int64 [N].
        slots: int64 [N]; rows below 0 give zeros.
        pdl: as in `store_heads`; nor `blocks` and `starts`.

    Returns:
        [N, num_heads * D], the dtype of `qkv`.
    """
    block_size, num_kv_heads, dim = keys.shape[1:]
    num_heads = qkv.shape[1] // dim - 2 * num_kv_heads
    num_requests = len(starts) - 1
    out = torch.empty(len(qkv), num_heads * dim, dtype=qkv.dtype, device=qkv.device)
    _paged_attention_kernel[(len(qkv), num_kv_heads)](
        qkv, keys, values, blocks, starts, positions, slots, out, num_requests,
        qkv.stride(0), *keys.stride()[:3], *values.stride()[:3], blocks.stride(0),
        dim**-0.5 * _LOG2_E,
        num_heads=num_heads, num_kv_heads=num_kv_heads, block_size=block_size, dim=dim,
        num_keys=_KEYS, query_rows=_QUERY_ROWS,
        most_requests=max(_LEAST_REQUESTS, triton.next_power_of_2(num_requests)), pdl=pdl,
        **launch_options(4, pdl, stages=3),
    )  # fmt: skip
    return out
