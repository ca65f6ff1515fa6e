"""Causal layers with an explicit state: each is given its history, none remembers a stream.

Offline is one chunk from a zero history, and any split of a sequence into chunks computes the same
sums, so it gives the same result up to rounding. Activations are [B, L, C] (time before channels):
a transposed convolution is then a convolution plus a reshape, and tensor cores get the
channels-last data they want.
Source: speech tokenizer decoder of Qwen3-TTS 12Hz.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv_weight(weight: Tensor) -> Tensor:
    """Rearrange a convolution's weight [Cout, Cin, K] for `conv_of_padded`."""
    return weight.unsqueeze(-1).contiguous(memory_format=torch.channels_last)


def conv_of_padded(
    padded: Tensor, weight: Tensor, bias: Tensor | None, *, dilation: int = 1
) -> Tensor:
    """Convolve columns that begin with their history.

    A dilated convolution along time is a plain one along each of `dilation` interleaved sequences.
    Read as an image of width `dilation`, the columns need no copy for that, and the library needs
    no dilated kernel: cuDNN 9 picks a direct one for some shapes, a thousand times slower.

    Args:
        padded: [B, N, Cin], contiguous, N a multiple of `dilation`.
        weight: from `conv_weight`.
        bias: [Cout], or None.
        dilation: columns between two taps.

    Returns:
        [B, N - (K-1)*dilation, Cout], contiguous on CUDA. Output l depends on columns up to
        (K-1)*dilation + l.
    """
    image = padded.unflatten(1, (-1, dilation)).permute(0, 3, 1, 2)
    return F.conv2d(image, weight, bias).permute(0, 2, 3, 1).flatten(1, 2)


def causal_conv(
    x: Tensor, history: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Convolve so that output l depends on inputs up to l only.

    Args:
        x: [B, L, Cin], the fresh columns.
        history: [B, K-1, Cin], the columns just before them; zeros at the start of a stream.
        weight: from `conv_weight`.
        bias: [Cout], or None.

    Returns:
        Output [B, L, Cout] and the next history, which shares no memory with the arguments.
    """
    padded = torch.cat((history, x), 1)
    return conv_of_padded(padded, weight, bias), padded[:, x.shape[1] :]


def transposed_conv_weight(weight: Tensor, stride: int) -> Tensor:
    """Rearrange a transposed convolution's weight [Cin, Cout, K] for `causal_transposed_conv`.

    With K = stride * taps, output n * stride + p is the sum over i < taps of weight[:, :, i *
    stride + p] applied to input n - i: an ordinary causal convolution of `taps` taps whose output
    channels hold the `stride` phases.

    Returns:
        [stride * Cout, Cin, taps], phase-major: an ordinary weight for `conv_weight`.

    Raises:
        ValueError: K is no multiple of the stride.
    """
    num_in, num_out, kernel = weight.shape
    if kernel % stride:
        raise ValueError(
            f"transposed convolution: kernel {kernel} is no multiple of the stride {stride}"
        )
    phases = weight.reshape(num_in, num_out, kernel // stride, stride).flip(2)
    return phases.permute(3, 1, 0, 2).reshape(stride * num_out, num_in, kernel // stride)


def transposed_conv_of_padded(
    padded: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int
) -> Tensor:
    """Upsample columns that begin with their history by `stride`.

    Args:
        padded: [B, taps-1 + L, Cin]. Zeros are the exact history at the start of a stream, because
            a zero column adds nothing.
        weight: from `transposed_conv_weight` and `conv_weight`.
        bias: [stride * Cout], the bias repeated for each phase, or None.
        stride: output columns per input column.

    Returns:
        [B, L * stride, Cout]. Output n depends on fresh columns up to floor(n / stride).
    """
    y = conv_of_padded(padded, weight, bias)
    return y.reshape(y.shape[0], y.shape[1] * stride, -1)


def rotary(
    position: Tensor, num_new: int, head_dim: int, theta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cos and sin [B, T, 1, head_dim], rotate-half, of the T positions from position[b] on.

    The inverse frequencies are rounded to float32 whatever `dtype` is, as the reference does.
    """
    exponent = torch.arange(0, head_dim, 2, device=position.device, dtype=torch.float32) / head_dim
    inverse_frequency = (1.0 / theta**exponent).to(dtype)
    steps = position[:, None] + torch.arange(num_new, device=position.device)
    angle = steps.to(dtype)[..., None] * inverse_frequency
    angle = torch.cat((angle, angle), -1).unsqueeze(2)
    return angle.cos(), angle.sin()


def window_mask(position: Tensor, num_new: int, window: int) -> Tensor:
    """Say which keys each query sees: bool [B, 1, T, window-1+T], true where the key counts.

    Keys are the window-1 cached ones, then the T new ones, so key j of row b stands at position[b]
    - (window-1) + j. A query sees itself and the window-1 positions before it, never a position
    below 0 (a cache entry not yet filled).
    """
    query = torch.arange(num_new, device=position.device)[:, None]
    key = torch.arange(window - 1 + num_new, device=position.device)
    band = (key >= query) & (key <= query + window - 1)
    filled = key >= (window - 1) - position[:, None]
    return (band & filled[:, None, :])[:, None]


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cached_key: Tensor,
    cached_value: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attend over the cached and the new positions.

    Args:
        query: [B, T, heads, head_dim], rotated.
        key: [B, T, kv_heads, head_dim], rotated at absolute positions.
        value: as `key`, not rotated.
        cached_key: [B, window-1, kv_heads, head_dim]; entries before position 0 are ignored.
        cached_value: as `cached_key`.
        mask: from `window_mask`.

    Returns:
        Output [B, T, heads * head_dim], and the next cached keys and values.
    """
    num_kept = cached_key.shape[1]
    keys, values = torch.cat((cached_key, key), 1), torch.cat((cached_value, value), 1)
    mixed = F.scaled_dot_product_attention(
        query.transpose(1, 2),
        keys.transpose(1, 2),
        values.transpose(1, 2),
        attn_mask=mask,
        enable_gqa=query.shape[2] != key.shape[2],
    )
    start = keys.shape[1] - num_kept
    return mixed.transpose(1, 2).flatten(2), keys[:, start:], values[:, start:]
