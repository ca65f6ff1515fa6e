"""The code predictor on a CPU: a small model's frame as one compiled function.

A frame of a small model is thousands of tensor operations of a few microseconds each, most of them
the price of a call. Here numba compiles the whole frame, sampling included, for the processor that
it meets (once; the result lies in `__pycache__`, or in the user's cache where that cannot be
written). Nothing of it needs a compiler on the machine. Rows do not influence one another, and the
interpreter is free meanwhile. Same interface and, up to rounding, the same numbers as
`CodePredictor`; the same codes wherever two are not closer than that.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numba
import numpy as np
import torch
from torch import Tensor

from serve_app.models.checkpoint.spec import CodePredictorSpec
from serve_app.models.code_predictor.model import CodePredictor

# Sums in any order, so that they run in vectors; not-a-number and infinity keep their meaning.
_MATH: Final = {"reassoc", "contract", "nsz", "arcp"}


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    options = {"nogil": True, "fastmath": _MATH, **options}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder can be written: every start compiles
        return numba.njit(**options)(function)


def _compiled_in_order(function: Callable[..., Any]) -> Any:
    """For sums whose order decides which code is drawn."""
    return _compiled(function, fastmath=False)


_GAMMA: Final = np.uint64(-7046029254386353131 & (1 << 64) - 1)
_MIX_1: Final = np.uint64(-4658895280553007687 & (1 << 64) - 1)
_MIX_2: Final = np.uint64(-7723592293110705685 & (1 << 64) - 1)


@_compiled
def _product(weight, x, rows, out):
    """out[:rows] = x[:rows] times weight [outputs, inputs], each weight read once for all rows."""
    outputs, inputs = weight.shape
    for o in range(outputs):
        for r in range(rows):
            total = np.float32(0)
            for i in range(inputs):
                total += weight[o, i] * x[r, i]
            out[r, o] = total


@_compiled
def _normed(x, weight, eps, out):
    """RMSNorm of one vector."""
    total = np.float32(0)
    for i in range(len(weight)):
        total += x[i] * x[i]
    scale = np.float32(1) / np.sqrt(total / np.float32(len(weight)) + eps)
    for i in range(len(weight)):
        out[i] = x[i] * scale * weight[i]


@_compiled
def _rotated(x, begin, weight, eps, cos, sin, out):
    """RMSNorm, then rotary embedding, of the head of x that begins there."""
    width = len(weight)
    half = width // 2
    total = np.float32(0)
    for i in range(width):
        total += x[begin + i] * x[begin + i]
    scale = np.float32(1) / np.sqrt(total / np.float32(width) + eps)
    for i in range(half):
        low = x[begin + i] * scale * weight[i]
        high = x[begin + half + i] * scale * weight[half + i]
        out[i] = low * cos[i] - high * sin[i]
        out[half + i] = high * cos[half + i] + low * sin[half + i]


@_compiled
def _attend(qkv, row, q_norm, k_norm, eps, cos, sin, cache, at, query, scores, out):
    """Append position `at` of one stream to its cache, and attend.

    Of qkv [rows, (heads + 2 kv_heads) * head_dim] and out [rows, heads * head_dim], `row` is meant;
    cache is [2, kv_heads, positions, head_dim]; query [head_dim] and scores [positions] are
    scratch.
    """
    _, kv_heads, _, head_dim = cache.shape
    heads = out.shape[1] // head_dim
    group = heads // kv_heads
    scale = np.float32(1) / np.sqrt(np.float32(head_dim))
    for h in range(kv_heads):
        _rotated(qkv[row], (heads + h) * head_dim, k_norm, eps, cos[at], sin[at], cache[0, h, at])
        begin = (heads + kv_heads + h) * head_dim
        for i in range(head_dim):
            cache[1, h, at, i] = qkv[row, begin + i]
    for h in range(heads):
        keys, values = cache[0, h // group], cache[1, h // group]
        begin = h * head_dim
        _rotated(qkv[row], begin, q_norm, eps, cos[at], sin[at], query)
        most = np.float32(-np.inf)
        for p in range(at + 1):
            total = np.float32(0)
            for i in range(head_dim):
                total += query[i] * keys[p, i]
            scores[p] = total * scale
            most = max(most, scores[p])
        mass = np.float32(0)
        for p in range(at + 1):
            scores[p] = np.exp(scores[p] - most)
            mass += scores[p]
        for i in range(head_dim):
            out[row, begin + i] = np.float32(0)
        for p in range(at + 1):
            share = scores[p] / mass
            for i in range(head_dim):
                out[row, begin + i] += share * values[p, i]


@_compiled
def _add(x, rows, change):
    for r in range(rows):
        for i in range(x.shape[1]):
            x[r, i] += change[r, i]


@_compiled
def _gated(both, rows, out):
    """SwiGLU: silu of the first half times the second."""
    inner = out.shape[1]
    for r in range(rows):
        for i in range(inner):
            gate = both[r, i]
            out[r, i] = gate / (np.float32(1) + np.exp(-gate)) * both[r, inner + i]


@_compiled_in_order
def _uniform(seed, frame, group):
    """`sampling.uniform` of one draw."""
    x = np.uint64(seed) + _GAMMA
    for turn in range(3):
        if turn == 1:
            x += np.uint64(frame)
        elif turn == 2:
            x = x * _GAMMA + np.uint64(group)
        x = (x ^ (x >> np.uint64(30))) * _MIX_1
        x = (x ^ (x >> np.uint64(27))) * _MIX_2
        x ^= x >> np.uint64(31)
    number = np.float32(np.int64(x >> np.uint64(41))) + np.float32(0.5)
    return number * np.float32(2.0**-23)


@_compiled_in_order
def _sink(heap, at, size):
    """Put heap[at] where it belongs among the `size` first, the largest being in front."""
    value = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if not heap[child] > value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value


@_compiled_in_order
def _ordered(values, most):
    """Move the `most` largest to the end, the largest last; equals of the last one follow it.

    Returns how many were moved.
    """
    size = len(values)
    for at in range(size // 2 - 1, -1, -1):
        _sink(values, at, size)
    moved = 0
    while size > 0 and (moved < most or values[0] == values[size]):
        size -= 1
        largest = values[0]
        values[0] = values[size]
        values[size] = largest
        _sink(values, 0, size)
        moved += 1
    return moved


@_compiled_in_order
def _drawn(logits, temperature, top_k, top_p, u, scaled, weights):
    """`sampling.sample` of one row; scaled, weights: scratch of as many numbers."""
    vocab = len(logits)
    best = 0
    for i in range(1, vocab):
        if logits[i] > logits[best]:
            best = i
    if not temperature > 0:
        return best
    for i in range(vocab):
        scaled[i] = weights[i] = logits[i] / temperature
    most = scaled[best]
    # Codes equal to the k-th best stay in.
    moved = _ordered(weights, min(top_k, vocab) if top_k > 0 else vocab)
    mass = 0.0
    for i in range(moved):
        mass += np.exp(weights[vocab - 1 - i] - most)
    threshold, above = most, 0.0
    for i in range(moved):
        share = np.exp(weights[vocab - 1 - i] - most) / np.float32(mass)
        if i > 0 and not (np.float32(above) < top_p and share > 0):
            break
        threshold = weights[vocab - 1 - i]
        above += share
    total, last = 0.0, 0
    for i in range(vocab):
        if scaled[i] >= threshold:
            weight = np.exp(scaled[i] - most)
            total += weight
            if weight > 0:
                last = i
        weights[i] = np.float32(total)
    target = u * weights[vocab - 1]
    for i in range(last):
        if weights[i] > target:
            return i
    return last


@_compiled
def _frame(layers, norm, eps, rotary, tables, heads, first, draws, options, codes):
    """Write the codes [B, Q - 1] of a frame.

    layers: weights of all layers, stacked, in the order of `PredictorLayer`; rotary: [2, positions,
    head_dim]; tables: [Q - 2, V, h], of the codes that are fed back; heads: [Q - 1, V, h]; first:
    [2 B, h], both positions of each stream's first pass; draws: int64 [2, B], seed and frame;
    options: temperature float32 [B], top_k int64 [B], top_p float32 [B].
    """
    input_norm, qkv, q_norm, k_norm, output, post_norm, gate_up, down = layers
    temperature, top_k, top_p = options
    streams, passes = codes.shape
    num_layers, hidden = input_norm.shape
    head_dim, inner = q_norm.shape[1], down.shape[2]
    attended = output.shape[2]
    kv_heads = (qkv.shape[1] - attended) // (2 * head_dim)
    cos, sin = rotary[0], rotary[1]
    most = 2 * streams
    cache = np.empty((num_layers, streams, 2, kv_heads, passes + 1, head_dim), np.float32)
    x = first
    normed = np.empty((most, hidden), np.float32)
    projected = np.empty((most, qkv.shape[1]), np.float32)
    mixed = np.empty((most, attended), np.float32)
    change = np.empty((most, hidden), np.float32)
    both = np.empty((most, 2 * inner), np.float32)
    gated = np.empty((most, inner), np.float32)
    vocab = heads.shape[1]
    logits = np.empty((most, vocab), np.float32)
    query, scores = np.empty(head_dim, np.float32), np.empty(passes + 1, np.float32)
    scaled, weights = np.empty(vocab, np.float32), np.empty(vocab, np.float32)
    start, fresh = 0, 2
    for group in range(passes):
        rows = streams * fresh
        for layer in range(num_layers):
            for r in range(rows):
                _normed(x[r], input_norm[layer], eps, normed[r])
            _product(qkv[layer], normed, rows, projected)
            for stream in range(streams):
                for i in range(fresh):
                    _attend(
                        projected, stream * fresh + i, q_norm[layer], k_norm[layer], eps, cos, sin,
                        cache[layer, stream], start + i, query, scores, mixed,
                    )  # fmt: skip
            _product(output[layer], mixed, rows, change)
            _add(x, rows, change)
            for r in range(rows):
                _normed(x[r], post_norm[layer], eps, normed[r])
            _product(gate_up[layer], normed, rows, both)
            _gated(both, rows, gated)
            _product(down[layer], gated, rows, change)
            _add(x, rows, change)
        for stream in range(streams):
            _normed(x[stream * fresh + fresh - 1], norm, eps, normed[stream])
        _product(heads[group], normed, streams, logits)
        for stream in range(streams):
            code = _drawn(
                logits[stream], temperature[stream], top_k[stream], top_p[stream],
                _uniform(draws[0, stream], draws[1, stream], group + 1), scaled, weights,
            )  # fmt: skip
            codes[stream, group] = code
            if group < passes - 1:
                for i in range(hidden):
                    x[stream, i] = tables[group, code, i]
        start += fresh
        fresh = 1


class CompiledCodePredictor(CodePredictor):
    """See CodePredictor; float32 on a CPU, for a small model. Compiled when it is built."""

    def __init__(
        self,
        spec: CodePredictorSpec,
        tensors: Mapping[str, Tensor],
        codec_embedding: Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(spec, tensors, codec_embedding, device, dtype)
        names = ("input_norm", "qkv", "q_norm", "k_norm", "output", "post_norm", "gate_up", "down")
        self._layers = tuple(
            _stacked([getattr(layer, name) for layer in self.layers]) for name in names
        )
        self._rotary = _stacked([self.cos, self.sin])
        width = self.norm.shape[0]
        # Without a code to feed back the array is empty, and still one of these dimensions.
        self._tables = (
            _stacked(self.code_tables[1:])
            if len(self.code_tables) > 1
            else np.empty((0, spec.vocab_size, width), np.float32)
        )
        self._heads = _stacked(self.heads)
        self._eps = np.float32(spec.transformer.rms_norm_eps)
        self._norm = self.norm.numpy()
        integers, ones = torch.zeros(1, dtype=torch.int64), torch.ones(1)
        hidden = torch.zeros(1, spec.talker_hidden_size)
        self.frame(hidden, integers, integers, integers, ones, integers, ones)

    def frame(
        self,
        hidden: Tensor,
        code_0: Tensor,
        seed: Tensor,
        frame: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> Tensor:
        projected = self._project(hidden.to(self.dtype))
        first = torch.stack((projected, self.code_tables[0][code_0]), dim=1).flatten(0, 1)
        codes = np.empty((len(hidden), self.spec.num_code_groups - 1), np.int64)
        _frame(
            self._layers, self._norm, self._eps, self._rotary, self._tables, self._heads,
            first.contiguous().numpy(), torch.stack((seed, frame)).numpy(),
            tuple(each.contiguous().numpy() for each in (temperature, top_k, top_p)), codes,
        )  # fmt: skip
        return torch.from_numpy(codes)


def _stacked(tensors: list[Tensor]) -> np.ndarray:
    return torch.stack(tensors).contiguous().numpy()
