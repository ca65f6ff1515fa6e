"""Triton versions of the speech decoder's passes that libraries do badly: read once, write once.

They compute in float32 whatever the activations are. The eager functions of the same names in
`speech_decoder_model` are the reference; tests/gpu/test_speech_decoder.py compares them.
"""

# Triton types constexpr parameters and static_range as they are inside a compiled kernel.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import torch
import triton
import triton.language as tl
from torch import Tensor

from serve_app.models.speech_decoder_model import Kernels

_BLOCK = 1024
# Output columns per program of `waveform`; its channels are one block.
_WAVEFORM_COLUMNS = 64


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
    wide = value.to(tl.float32) + tl.load(shift + channel)
    sine = tl.sin(wide * tl.load(alpha_exp + channel))
    wide += sine * sine * tl.load(inverse_beta + channel)
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


def snake(x: Tensor, shift: Tensor, alpha_exp: Tensor, inverse_beta: Tensor) -> Tensor:
    """Do what `speech_decoder_model.snake` does; each row of x is contiguous."""
    return snake_padded(x, x[:, :0], shift, alpha_exp, inverse_beta)


def snake_padded(
    x: Tensor,
    history: Tensor,
    shift: Tensor,
    alpha_exp: Tensor,
    inverse_beta: Tensor,
    multiple: int = 1,
) -> Tensor:
    """Do what `speech_decoder_model.snake_padded` does; rows of x and `history` are contiguous."""
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
        block=_BLOCK,
    )
    return out


def depthwise_conv(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do what `speech_decoder_model.depthwise_conv` does; `padded` is contiguous."""
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
    """Do what `speech_decoder_model.waveform` does; `padded` and `weight` are contiguous."""
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


KERNELS = Kernels(snake, snake_padded, depthwise_conv, waveform)
