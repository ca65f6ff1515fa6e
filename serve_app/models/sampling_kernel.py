"""Triton kernel that draws one code per row, for every code group: the twin of `sampling`.

Logits are read after the kernel before has ended (`layers.launch`), past the L1 cache. Arithmetic
is float32; tests/gpu/test_fast_code_predictor.py compares it with `sampling`.
"""

# Triton's decorator keeps the annotation tl.constexpr, which callers meet with plain integers.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportAssignmentType=false, reportOperatorIssue=false, reportCallIssue=false

import triton
import triton.language as tl
from torch import Tensor

from serve_app.models.layers.launch import await_predecessor, launch_options, start_successor

# Constants of the splitmix64 finaliser, as in `sampling`.
_GAMMA = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)


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
