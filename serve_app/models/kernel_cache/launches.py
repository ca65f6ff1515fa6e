"""Launch every kernel of ours as the stages do, at the released shapes, on the card of the driver.

With `absent_gpu` that compiles them for a card that is not here. Tensors are on the CPU and small:
no kernel runs, and a kernel is compiled by types and widths, not by how much there is.
"""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import torch
from torch import Tensor

from serve_app.models.code_predictor import attention_kernel, fast
from serve_app.models.layers.linear_kernels import add_norm, swiglu, tiled_linear, vector_linear
from serve_app.models.sampling_kernel import sample_row
from serve_app.models.speech_decoder.network import kernels as decoder_kernels
from serve_app.models.talker.vllm import attention_kernels, embed_kernel

_BF16: Final = torch.bfloat16
_HEADS, _KV_HEADS, _DIM = 16, 8, 128
_VOCAB, _GROUPS = 2048, 16
_EPS: Final = 1e-6


class How(NamedTuple):
    """pdl: with overlapped launches. thorough: every variant, or of each kernel the largest."""

    pdl: bool
    thorough: bool


def _zeros(*shape: int, dtype: torch.dtype = _BF16) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def _products(hidden: int, rows: int, plan: fast.PredictorPlan, how: How) -> None:
    """The products of a layer of `hidden` by a plan, the talker's or the code predictor's."""
    qkv, inner, pdl = (_HEADS + 2 * _KV_HEADS) * _DIM, 3 * hidden, how.pdl
    x, wide, narrow = _zeros(rows, hidden), _zeros(rows, _HEADS * _DIM), _zeros(rows, inner)
    shapes = {
        "qkv": (qkv, hidden),
        "output": (hidden, _HEADS * _DIM),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
        "head": (_VOCAB, hidden),
    }
    weights = {name: _zeros(1, 1).expand(shape) for name, shape in shapes.items()}
    norm = (x[0], _EPS)
    logits = _zeros(1, rows, _VOCAB, dtype=torch.float32)
    outs = [_zeros(rows, qkv, dtype=kind) for kind in (torch.float32, _BF16)]
    if rows <= plan.vector_rows:
        tiles, state = plan.vector, x.to(plan.residual)
        vector_linear(state, weights["gate_up"], narrow, tiles.gate_up, norm, None, True, pdl)
        if how.thorough:
            for out in outs:
                vector_linear(x, weights["qkv"], out, tiles.qkv, norm=norm, pdl=pdl)
            vector_linear(wide, weights["output"], state, tiles.output, residual=x, pdl=pdl)
            vector_linear(narrow, weights["down"], state, tiles.down, residual=state, pdl=pdl)
            vector_linear(state, weights["head"], logits[0], tiles.head, norm=norm, pdl=pdl)
        return
    tiles = plan.tiled
    options = {"stages": plan.stages, "pdl": pdl, "tile_rows": plan.tile_rows}
    mixed, fed = (_zeros(n, rows, hidden, dtype=torch.float32) for n in plan.splits)
    add_norm(x, fed, x[0], _EPS, pdl)
    tiled_linear(narrow, weights["down"], fed, tiles.down, plan.splits[1], **options)
    if how.thorough:
        for delta in (None, mixed, x):
            add_norm(x, delta, x[0], _EPS, pdl)
        for out in outs:
            tiled_linear(x, weights["qkv"], out, tiles.qkv, **options)
        tiled_linear(wide, weights["output"], mixed, tiles.output, plan.splits[0], **options)
        tiled_linear(x, weights["gate_up"], narrow, tiles.gate_up, gated=True, **options)
        tiled_linear(x, weights["head"], logits, tiles.head, **options)
        swiglu(_zeros(rows, 2 * inner), pdl)


def products_of_one_row(how: How) -> None:
    for hidden in (2048, 1024)[: 2 if how.thorough else 1]:
        _products(hidden, 1, fast.PredictorPlan(vector_rows=2), how)


def products_of_some_rows(how: How) -> None:
    # As many rows as make the largest tile of a plan.
    plans = [
        (min(most, 64), plan)
        for most, plan in (*fast.PLANS, (64, fast.DETERMINISTIC))
        if plan.library_rows > 1 and most > 1
    ]
    for hidden in (2048, 1024)[: 2 if how.thorough else 1]:
        for rows, plan in plans if how.thorough else plans[:1]:
            _products(hidden, rows, plan, How(how.pdl and plan.pdl, how.thorough))


def sampling(how: How) -> None:
    rows = 2
    codes = _zeros(rows, _GROUPS, dtype=torch.int64)
    for vocab, hidden in ((3072, 2048), (_VOCAB, 1024))[: 2 if how.thorough else 1]:
        logits = _zeros(rows, vocab, dtype=torch.float32)
        seed, place = _zeros(rows, dtype=torch.int64), _zeros(rows, dtype=torch.float32)
        fed = (_zeros(vocab, hidden), _zeros(rows, hidden))
        for given in (fed, (None, None))[: 2 if how.thorough else 1]:
            sample_row(logits, seed, seed, place, seed, place, 1, 1, codes, *given, 8, how.pdl)


def predictor_attention(how: How) -> None:
    cache = _zeros(2, 1, _KV_HEADS, _GROUPS, _DIM)
    rotary = _zeros(_GROUPS, _DIM // 2, dtype=torch.float32)
    norm = _zeros(_DIM)
    for fresh in (1, 2)[: 2 if how.thorough else 1]:
        for kind in (torch.float32, _BF16)[: 2 if how.thorough else 1]:
            qkv = _zeros(fresh, (_HEADS + 2 * _KV_HEADS) * _DIM, dtype=kind)
            out = _zeros(fresh, _HEADS * _DIM)
            tables = (rotary, rotary)
            attention_kernel.attend(qkv, norm, norm, _EPS, tables, cache, 1, out, 1, how.pdl)


def talker_attention(how: How) -> None:
    rows = 2
    qkv = _zeros(rows, (_HEADS + 2 * _KV_HEADS) * _DIM)
    keys = _zeros(4, 16, _KV_HEADS, _DIM)
    places = _zeros(rows, dtype=torch.int64)
    norm, rotary = _zeros(_DIM), _zeros(64, _DIM)
    attention_kernels.store_heads(
        qkv, norm, norm, rotary, places, places, keys, keys, _EPS, how.pdl
    )
    for requests in (256, 2)[: 2 if how.thorough else 1]:
        blocks = _zeros(requests, 4, dtype=torch.int32)
        starts = _zeros(requests + 1, dtype=torch.int32)
        attention_kernels.attend(qkv, keys, keys, blocks, starts, places, places, how.pdl)


def talker_input(how: How) -> None:
    rows = 2
    ids = _zeros(rows, 8, 1 + _GROUPS, dtype=torch.int32)
    places = _zeros(rows, dtype=torch.int64)
    starts = _zeros(rows + 1, dtype=torch.int32)
    for hidden in (2048, 1024)[: 2 if how.thorough else 1]:
        out, table = _zeros(rows, hidden), _zeros(16, hidden)
        embed_kernel.embed_rows(out, table, ids, places, starts, places)


def decoder_passes(how: How) -> None:
    taps = 7
    for kind in (_BF16, torch.float32)[: 2 if how.thorough else 1]:
        x, history = _zeros(2, 8, 1536, dtype=kind), _zeros(2, 6, 1536, dtype=kind)
        by_channel = _zeros(1536, dtype=torch.float32)
        decoder_kernels.snake_padded(x, history, by_channel, by_channel, by_channel)
        padded = _zeros(2, 8 + taps - 1, 1024, dtype=kind)
        weight, bias = _zeros(1024, 1, taps, dtype=kind), _zeros(1024, dtype=kind)
        decoder_kernels.depthwise_conv(padded, weight, bias)
        padded = _zeros(2, 8 + taps - 1, 96, dtype=kind)
        weight, bias = _zeros(1, 96, taps, dtype=kind), _zeros(1, dtype=kind)
        decoder_kernels.waveform(padded, weight, bias)


def decoder_residual(how: How) -> None:
    by_channel = _zeros(96, dtype=torch.float32)
    activation = (by_channel, by_channel, by_channel)
    for length in (64, 1 << 16)[: 2 if how.thorough else 1]:
        x, padded = _zeros(1, 1, 96).expand(1, length, 96), _zeros(1, 1, 96)
        padded = padded.expand(1, length + 6, 96)
        conv, mix = _zeros(96, 96, 7), _zeros(96, 96, 1)
        decoder_kernels.add_residual(x, padded, conv, activation, mix, 1)


# By what they are; each may be compiled in a process of its own.
LAUNCHES: Final[Mapping[str, Callable[[How], None]]] = {
    "products of one row": products_of_one_row,
    "products of some rows": products_of_some_rows,
    "sampling": sampling,
    "the code predictor's attention": predictor_attention,
    "the talker's attention": talker_attention,
    "the talker's input": talker_input,
    "the speech decoder's passes": decoder_passes,
    "the speech decoder's residual units": decoder_residual,
}
