"""Triton versions of the speech decoder's passes that libraries do badly: read once, write once.

They compute in float32 whatever the activations are. The eager functions of the same names in
`passes` are the reference; tests/gpu/test_speech_decoder.py compares them.
"""

# Triton types constexpr parameters and static_range as they are inside a compiled kernel.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from serve_app.models.speech_decoder.network import passes as decoder_passes
from serve_app.models.speech_decoder.network.passes import Passes

_BLOCK = 1024
# Widths whose residual units are one kernel: three times a power of two, held as a block of two
# parts and one of one part. At 192 channels the library's convolution is the faster one.
_FUSED_WIDTHS = (96,)
# Columns per program of `add_residual`, and where too few programs run to hide what each waits for.
_RESIDUAL_COLUMNS = 64
_SMALL_COLUMNS = 1 << 16
# Output columns per program of `waveform`; its channels are one block.
_WAVEFORM_COLUMNS = 64


@triton.jit
def _snake_of(value, shift, alpha_exp, inverse_beta, fast: tl.constexpr):
    """Snake in float32. `fast`: with an error of 1e-6, far below the rounding to bfloat16."""
    wide = value + shift
    angle = wide * alpha_exp
    if fast:
        # The square of the sine has period pi, and within half of one the hardware's sine is good.
        turns = tl.floor(angle * 0.3183098861837907 + 0.5)
        angle = tl.fma(turns, -3.140625, angle)
        angle = tl.fma(turns, -0.0009676535897932, angle)
        sine = tl.inline_asm_elementwise(
            "sin.approx.f32 $0, $1;", "=f,f", [angle], tl.float32, is_pure=True, pack=1
        )
    else:
        sine = tl.sin(angle)
    return wide + sine * sine * inverse_beta


@triton.jit
def _snake_kernel(
    x,
    history,
    shift,
    alpha_exp,
    inverse_beta,
    out,
    x_row_stride,
    history_row_stride,
    channels,
    context_values,
    fresh_values,
    total_values,
    fast: tl.constexpr,
    block: tl.constexpr,
):
    """One row of a batch: `context_values` of history, Snake of `fresh_values`, then zeros."""
    row = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    kept = index < context_values
    fresh = (index >= context_values) & (index < context_values + fresh_values)
    channel = index % channels
    before = tl.load(history + row * history_row_stride + index, mask=kept, other=0.0)
    value = tl.load(x + row * x_row_stride + index - context_values, mask=fresh, other=0.0)
    wide = _snake_of(
        value.to(tl.float32),
        tl.load(shift + channel),
        tl.load(alpha_exp + channel),
        tl.load(inverse_beta + channel),
        fast,
    )
    result = tl.where(fresh, wide.to(before.dtype), before)
    tl.store(out + row * total_values + index, result, mask=index < total_values)


@triton.jit
def _depthwise_kernel(
    padded,
    weight,
    bias,
    out,
    channels,
    fresh_values,
    taps: tl.constexpr,
    block: tl.constexpr,
):
    """One row of a batch: each output value is the sum of `taps` columns of its channel."""
    row = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * block + tl.arange(0, block)
    inside = index < fresh_values
    channel = index % channels
    total = tl.load(bias + channel).to(tl.float32)
    padded += row * (fresh_values + (taps - 1) * channels)
    for tap in tl.static_range(taps):
        value = tl.load(padded + index + tap * channels, mask=inside, other=0.0).to(tl.float32)
        total += value * tl.load(weight + channel * taps + tap).to(tl.float32)
    tl.store(out + row * fresh_values + index, total, mask=inside)


@triton.jit
def _waveform_kernel(
    padded,
    weight,
    bias,
    out,
    length,
    channels,
    taps: tl.constexpr,
    columns: tl.constexpr,
    channel_block: tl.constexpr,
):
    """`columns` samples of one row: the sum over taps and channels, clamped."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    channel = tl.arange(0, channel_block)
    inside = (column < length)[:, None] & (channel < channels)[None, :]
    padded += row * (length + taps - 1) * channels
    offset = column[:, None] * channels + channel[None, :]
    total = tl.zeros((columns, channel_block), tl.float32)
    for tap in tl.static_range(taps):
        value = tl.load(padded + offset + tap * channels, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(weight + channel * taps + tap, mask=channel < channels, other=0.0)
        total += value * scale[None, :]
    sample = tl.sum(total, 1) + tl.load(bias)
    sample = tl.minimum(tl.maximum(sample, -1.0), 1.0)
    tl.store(out + row * length + column, sample, mask=column < length)


@triton.jit
def _residual_kernel(
    x,
    padded,
    conv,
    shift,
    alpha_exp,
    inverse_beta,
    mix,
    length,
    padded_columns,
    dilation,
    taps: tl.constexpr,
    part: tl.constexpr,
    columns: tl.constexpr,
    step: tl.constexpr,
):
    """`columns` columns of one row, all `3 * part` channels: x += mix(snake(conv(padded)))."""
    width: tl.constexpr = 3 * part
    depth: tl.constexpr = taps * width
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * columns + tl.arange(0, columns)
    inside = (column < length)[:, None]
    low = tl.arange(0, 2 * part)
    high = 2 * part + tl.arange(0, part)
    # The depth of the product runs over taps and, within a tap, over input channels.
    source = padded + row * padded_columns * width + column[:, None] * width
    first = tl.zeros((columns, 2 * part), tl.float32)
    second = tl.zeros((columns, part), tl.float32)
    for start in range(0, depth, step):
        k = start + tl.arange(0, step)
        offset = (k // width) * dilation * width + k % width
        if depth % step == 0:
            values = tl.load(source + offset[None, :], mask=inside, other=0.0)
            to_low = tl.load(conv + low[None, :] * depth + k[:, None])
            to_high = tl.load(conv + high[None, :] * depth + k[:, None])
        else:
            real = k < depth
            values = tl.load(source + offset[None, :], mask=inside & real[None, :], other=0.0)
            to_low = tl.load(
                conv + low[None, :] * depth + k[:, None], mask=real[:, None], other=0.0
            )
            to_high = tl.load(
                conv + high[None, :] * depth + k[:, None], mask=real[:, None], other=0.0
            )
        first = tl.dot(values, to_low, first)
        second = tl.dot(values, to_high, second)
    kind = x.dtype.element_ty
    first = _snake_of(
        first,
        tl.load(shift + low)[None, :],
        tl.load(alpha_exp + low)[None, :],
        tl.load(inverse_beta + low)[None, :],
        True,
    )
    second = _snake_of(
        second,
        tl.load(shift + high)[None, :],
        tl.load(alpha_exp + high)[None, :],
        tl.load(inverse_beta + high)[None, :],
        True,
    )
    first_in, second_in = first.to(kind), second.to(kind)
    x += row * length * width
    target = x + column[:, None] * width + low[None, :]
    total = tl.dot(first_in, tl.load(mix + low[None, :] * width + low[:, None]))
    total = tl.dot(second_in, tl.load(mix + low[None, :] * width + high[:, None]), total)
    total += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, total.to(kind), mask=inside)
    target = x + column[:, None] * width + high[None, :]
    rest = tl.dot(first_in, tl.load(mix + high[None, :] * width + low[:, None]))
    rest = tl.dot(second_in, tl.load(mix + high[None, :] * width + high[:, None]), rest)
    rest += tl.load(target, mask=inside, other=0.0).to(tl.float32)
    tl.store(target, rest.to(kind), mask=inside)


def snake(x: Tensor, shift: Tensor, alpha_exp: Tensor, inverse_beta: Tensor) -> Tensor:
    """Do what `passes.snake` does; each row of x is contiguous."""
    return snake_padded(x, x[:, :0], shift, alpha_exp, inverse_beta)


def snake_padded(
    x: Tensor,
    history: Tensor,
    shift: Tensor,
    alpha_exp: Tensor,
    inverse_beta: Tensor,
    multiple: int = 1,
) -> Tensor:
    """Do what `passes.snake_padded` does; rows of x and `history` are contiguous."""
    rows, length, channels = x.shape
    if x.stride()[1:] != (channels, 1):
        x = x.contiguous()
    context = history.shape[1]
    total = triton.cdiv(context + length, multiple) * multiple
    out = torch.empty((rows, total, channels), dtype=x.dtype, device=x.device)
    grid = (triton.cdiv(total * channels, _BLOCK), rows)
    _snake_kernel[grid](
        x,
        history,
        shift,
        alpha_exp,
        inverse_beta,
        out,
        x.stride(0),
        history.stride(0),
        channels,
        context * channels,
        length * channels,
        total * channels,
        fast=x.dtype != torch.float32,
        block=_BLOCK,
    )
    return out


def add_residual(
    x: Tensor,
    padded: Tensor,
    conv: Tensor,
    activation: tuple[Tensor, Tensor, Tensor],
    mix: Tensor,
    dilation: int,
) -> Tensor:
    """Do what `passes.add_residual` does; all arguments are contiguous.

    In one kernel where that measured faster: bfloat16 at the narrowest width, whose columns are so
    many that reading and writing them costs more than the products.
    """
    rows, length, width = x.shape
    if x.dtype != torch.bfloat16 or width not in _FUSED_WIDTHS:
        return decoder_passes.add_residual(x, padded, conv, activation, mix, dilation, snake)
    is_small = rows * length < _SMALL_COLUMNS
    step, warps, stages = (64, 8, 3) if is_small else (32, 4, 4)
    _residual_kernel[triton.cdiv(length, _RESIDUAL_COLUMNS), rows](
        x,
        padded,
        conv,
        *activation,
        mix,
        length,
        padded.shape[1],
        dilation,
        taps=conv.shape[2],
        part=width // 3,
        columns=_RESIDUAL_COLUMNS,
        step=step,
        num_warps=warps,
        num_stages=stages,
    )
    return x


def depthwise_conv(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do what `passes.depthwise_conv` does; `padded` is contiguous."""
    rows, columns, channels = padded.shape
    taps = weight.shape[2]
    length = columns - taps + 1
    out = torch.empty((rows, length, channels), dtype=padded.dtype, device=padded.device)
    grid = (triton.cdiv(length * channels, _BLOCK), rows)
    _depthwise_kernel[grid](
        padded, weight, bias, out, channels, length * channels, taps=taps, block=_BLOCK
    )
    return out


def waveform(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do what `passes.waveform` does; `padded` and `weight` are contiguous."""
    rows, columns, channels = padded.shape
    taps = weight.shape[2]
    length = columns - taps + 1
    out = torch.empty((rows, length), dtype=torch.float32, device=padded.device)
    grid = (triton.cdiv(length, _WAVEFORM_COLUMNS), rows)
    _waveform_kernel[grid](
        padded,
        weight,
        bias,
        out,
        length,
        channels,
        taps=taps,
        columns=_WAVEFORM_COLUMNS,
        channel_block=triton.next_power_of_2(channels),
    )
    return out


CUDA_PASSES = Passes(snake_padded, add_residual, depthwise_conv, waveform)
