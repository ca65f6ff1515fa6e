"""Functions of transformer layers in plain PyTorch, as the reference computes them."""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale [..., C] to a root mean square of 1, then by `weight`.

    The mean square is taken in float32 at least, and the result rounded to x.dtype before the
    weight.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary embedding, rotate-half pairing, to [..., D].

    cos and sin, broadcastable to it, have the dtype that is computed in; the result has x's.
    """
    wide = x.to(cos.dtype)
    low, high = wide.chunk(2, -1)
    return (wide * cos + torch.cat((-high, low), -1) * sin).to(x.dtype)
