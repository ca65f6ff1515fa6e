"""Norm, style and activation of the generator: kernels on a GPU, else PyTorch's operations.

These take a dozen passes over memory, and more time than the convolutions. Triton comes with
PyTorch on a GPU.
"""

import logging
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

from training.teacher.layers import Valid, affine, moments

# Values that one program of a kernel holds.
_VALUES: Final = 4096
_LOG = logging.getLogger(__name__)


def adapted_snake(x: Tensor, asked: tuple[Tensor, Tensor], alpha: Tensor, valid: Valid) -> Tensor:
    """Norm each channel over its valid steps, apply gain and offset, then y + sin(ay)^2 / a.

    Args:
        x: float32 or float16 [B, T, C], padding ignored.
        asked: gain and offset [B, C].
        alpha: a of each channel [C].
        valid: what counts of x.

    Returns:
        [B, T, C] like x, zero in the padding.
    """
    if x.is_cuda and _works(x.device):
        return fused(x, asked, alpha, valid)
    return plain(x, asked, alpha, valid)


def plain(x: Tensor, asked: tuple[Tensor, Tensor], alpha: Tensor, valid: Valid) -> Tensor:
    """`adapted_snake` by PyTorch's operations."""
    values = x.float()
    factor, summand = affine(moments(values, valid), *asked)
    y = torch.addcmul(summand.unsqueeze(1), values, factor.unsqueeze(1))
    return valid.clean(y + torch.sin(alpha * y).square() / alpha).to(x.dtype)


def fused(x: Tensor, asked: tuple[Tensor, Tensor], alpha: Tensor, valid: Valid) -> Tensor:
    """`adapted_snake` by kernels, for a power of two of channels.

    Each tile of time gives its own moments, which are put together afterwards.
    """
    x = x.contiguous()
    rows, size, channels = x.shape
    tile = max(1, _VALUES // channels)
    tiles = -(-size // tile)
    means, squares = x.new_empty(2, rows, tiles, channels, dtype=torch.float32)
    gather, apply = _kernels()
    grid = (rows, tiles)
    gather[grid](x, valid.counts, means, squares, size, tiles, tile=tile, channels=channels)
    starts = torch.arange(0, size, tile, device=x.device)
    counts = (valid.counts.unsqueeze(-1) - starts).clamp(0, tile).unsqueeze(-1)
    total = valid.counts.unsqueeze(-1)
    mean = (means * counts).sum(1) / total
    apart = (means - mean.unsqueeze(1)).square() * counts
    factor, summand = affine((mean, (squares + apart).sum(1) / total), *asked)
    out = torch.empty_like(x)
    apply[grid](
        x,
        out,
        valid.counts,
        factor.contiguous(),
        summand.contiguous(),
        alpha,
        size,
        tile=tile,
        channels=channels,
    )
    return out


@cache
def _works(device: torch.device) -> bool:
    """Whether the kernels give here what PyTorch's operations give."""
    try:
        compare(device)
    except Exception:
        # Slower, but lent GPU time must not end here.
        _LOG.exception("the teacher's kernels do not work; PyTorch's operations take their place")
        return False
    return True


def compare(device: torch.device) -> None:
    """Raise AssertionError where `fused` and `plain` differ."""
    for channels, kind in ((128, torch.float16), (256, torch.float32)):
        x = (torch.randn(3, 700, channels, device=device) * 3 + 1).to(kind)
        valid = Valid.of([700, 641, 5], 700, device)
        asked = (torch.randn(3, channels, device=device), torch.randn(3, channels, device=device))
        alpha = torch.rand(channels, device=device) + 0.5
        made, expected = (function(x, asked, alpha, valid) for function in (fused, plain))
        torch.testing.assert_close(made, expected, rtol=2e-3, atol=1e-3)


@cache
def _kernels() -> tuple[Any, Any]:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    @triton.jit
    def gather(x, counts, means, squares, size, tiles, tile: tl.constexpr, channels: tl.constexpr):
        row, index = tl.program_id(0).to(tl.int64), tl.program_id(1)
        count = tl.load(counts + row).to(tl.int32)
        step = index * tile + tl.arange(0, tile)[:, None]
        channel = tl.arange(0, channels)[None, :]
        inside = step < count
        begin = x + row * size * channels
        value = tl.load(begin + (step * channels + channel), mask=inside, other=0.0)
        value = value.to(tl.float32)
        number = tl.maximum(tl.minimum(count - index * tile, tile), 1).to(tl.float32)
        mean = tl.sum(value, 0) / number
        apart = tl.where(inside, value - mean[None, :], 0.0)
        where = (row * tiles + index) * channels + tl.arange(0, channels)
        tl.store(means + where, mean)
        tl.store(squares + where, tl.sum(apart * apart, 0))

    @triton.jit
    def apply(
        x, out, counts, factor, summand, alpha, size, tile: tl.constexpr, channels: tl.constexpr
    ):
        row, index = tl.program_id(0).to(tl.int64), tl.program_id(1)
        count = tl.load(counts + row).to(tl.int32)
        step = index * tile + tl.arange(0, tile)[:, None]
        channel = tl.arange(0, channels)[None, :]
        begin, where = row * size * channels, step * channels + channel
        value = tl.load(x + begin + where, mask=step < count, other=0.0).to(tl.float32)
        a = tl.load(alpha + channel)
        y = value * tl.load(factor + row * channels + channel)
        y += tl.load(summand + row * channels + channel)
        wave = tl.sin(y * a)
        y += wave * wave / a
        tl.store(out + begin + where, tl.where(step < count, y, 0.0), mask=step < size)

    return gather, apply
