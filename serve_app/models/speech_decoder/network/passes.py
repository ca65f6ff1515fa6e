"""The passes of the speech decoder that libraries do badly on a GPU, in plain PyTorch.

`kernels` has the same functions for CUDA; `Passes` is one set or the other.
Source: speech tokenizer decoder of Qwen3-TTS 12Hz.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.models.speech_decoder.network.causal import conv_of_padded


def snake(x: Tensor, shift: Tensor, alpha_exp: Tensor, inverse_beta: Tensor) -> Tensor:
    """Return z + sin(z * e^alpha)^2 / e^beta for z = x + shift, per channel (the last dimension).

    Computed in the dtype of the parameters, since bfloat16 loses the phase of the sine; only the
    result is rounded. `shift` is the bias of the layers before, which costs no pass of its own
    here.
    """
    wide = x.to(alpha_exp.dtype) + shift
    return torch.addcmul(wide, torch.sin(wide * alpha_exp).square(), inverse_beta).to(x.dtype)


def snake_padded(
    x: Tensor,
    history: Tensor,
    shift: Tensor,
    alpha_exp: Tensor,
    inverse_beta: Tensor,
    multiple: int = 1,
) -> Tensor:
    """Return `history` [B, P, C], snake(x) [B, L, C], zeros to a multiple of `multiple` columns."""
    fresh = snake(x, shift, alpha_exp, inverse_beta)
    padded = torch.cat((history, fresh), 1)
    return F.pad(padded, (0, 0, 0, -padded.shape[1] % multiple))


def depthwise_conv(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve each channel by itself: [B, K-1+L, C] with weight [C, 1, K] to [B, L, C]."""
    channels_first = padded.transpose(1, 2)
    return F.conv1d(channels_first, weight, bias, groups=padded.shape[2]).transpose(1, 2)


def waveform(padded: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Do the last convolution and clamp: [B, K-1+L, C] with weight [1, C, K] to [B, L].

    Computed in the dtype of `weight`: the output is audio, where bfloat16 would be heard as noise.
    """
    y = F.conv1d(padded.transpose(1, 2).to(weight.dtype), weight, bias)
    return y.squeeze(1).clamp(-1.0, 1.0)


def add_residual(
    x: Tensor,
    padded: Tensor,
    conv: Tensor,
    activation: tuple[Tensor, Tensor, Tensor],
    mix: Tensor,
    dilation: int,
    activate: Callable[..., Tensor] = snake,
) -> Tensor:
    """Add to x [B, L, C] in place: a dilated convolution, Snake, and a product per column.

    Args:
        x: contiguous.
        padded: [B, N, C] as for `conv_of_padded`, its history first; what lies beyond the L columns
            of the result is not looked at.
        conv: [C, C, K], from `conv_weight`.
        activation: arguments of `snake`.
        mix: [C, C], output by input.
        dilation: columns between two taps.
        activate: what computes Snake.
    """
    y = conv_of_padded(padded, conv, None, dilation=dilation)[:, : x.shape[1]]
    y = activate(y, *activation)
    x.flatten(0, 1).addmm_(y.flatten(0, 1), mix.T)
    return x


@dataclass(frozen=True, slots=True)
class Passes:
    """The passes that libraries do badly on a GPU, as one exchangeable set; by default eager."""

    snake_padded: Callable[..., Tensor] = snake_padded
    add_residual: Callable[..., Tensor] = add_residual
    depthwise_conv: Callable[..., Tensor] = depthwise_conv
    waveform: Callable[..., Tensor] = waveform
