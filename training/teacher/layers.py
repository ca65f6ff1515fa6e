"""Layers over [B, T, C] whose rows have different lengths.

Channels lie side by side in memory, the layout in which a GPU convolves without turning tensors
over. What lies after a row's end is padding: whatever reads along time must see zeros there, as a
sentence that is alone sees them. So `Valid.clean` stands before each convolution, and the norms
count valid steps alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

_EPSILON: Final = 1e-5
_ALIGNED: Final = 8


@dataclass(frozen=True)
class Valid:
    """How many steps of each row count.

    counts: int64 [B] on the device. host: the same. size: T. mask: bool [B, T, 1].
    """

    counts: Tensor
    host: tuple[int, ...]
    size: int
    mask: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], size: int, device: torch.device) -> "Valid":
        # A copy that blocked would wait for all that the device still has to do.
        counts = torch.tensor(lengths).to(device, non_blocking=True)
        return cls(counts, tuple(lengths), size, _mask(counts, size))

    def times(self, rate: int, more: int = 0) -> "Valid":
        """Return the same rows at a higher rate, with `more` steps at the end of each."""
        counts, size = rate * self.counts + more, rate * self.size + more
        host = tuple(rate * length + more for length in self.host)
        return Valid(counts, host, size, _mask(counts, size))

    def clean(self, x: Tensor) -> Tensor:
        """Return [B, T, C] with zeros in the padding."""
        return x.masked_fill(~self.mask, 0.0)


def _mask(counts: Tensor, size: int) -> Tensor:
    return (torch.arange(size, device=counts.device) < counts[:, None]).unsqueeze(-1)


class Convolution(nn.Conv1d):
    """A convolution over time of [B, T, C]; the padding of `x` must be zero.

    Tensor cores read channels by eights, so what has another number of them gets some of zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        return self._over(x, self.bias)

    def unbiased(self, x: Tensor) -> Tensor:
        """The same but for the bias."""
        return self._over(x, None)

    def _over(self, x: Tensor, bias: Tensor | None) -> Tensor:
        weight, spare = self.weight, -x.shape[-1] % _ALIGNED
        if spare:
            x, weight = F.pad(x, (0, spare)), F.pad(weight, (0, 0, 0, spare))
        made = F.conv2d(
            x.transpose(1, 2).unsqueeze(2),
            weight.unsqueeze(2),
            bias,
            (1, *self.stride),
            (0, int(self.padding[0])),
            (1, *self.dilation),
        )
        return made.squeeze(2).transpose(1, 2)


class Recurrent(nn.LSTM):
    """A two-way LSTM that ends, and begins backwards, where each row ends."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(channels, hidden // 2, batch_first=True, bidirectional=True)

    def over(self, x: Tensor, valid: Valid) -> Tensor:
        """Take [B, T, channels]; return [B, T, hidden], zero in the padding."""
        lengths = torch.tensor(valid.host)
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        made, _ = pad_packed_sequence(self(packed)[0], batch_first=True, total_length=valid.size)
        return made


def spread(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Transposed convolution without bias as one product.

    Args:
        x: [B, T, I], zero in the padding.
        weight: [I, O, K].
        stride: a part of K.

    Returns:
        [B, (T - 1) * stride + K, O].
    """
    inputs, outputs, kernel = weight.shape
    reach = kernel // stride
    padded = F.pad(x, (0, 0, reach - 1, reach - 1))
    steps = x.shape[1] + reach - 1
    windows = torch.cat([padded[:, reach - 1 - j :][:, :steps] for j in range(reach)], dim=-1)
    table = weight.unflatten(-1, (reach, stride)).permute(2, 0, 3, 1)
    made = windows @ table.reshape(reach * inputs, stride * outputs)
    return made.reshape(x.shape[0], steps * stride, outputs)


class Upsampling(nn.ConvTranspose1d):
    """A transposed convolution of twice its stride, cut so that it multiplies the length."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(channels, out, 2 * stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        half, stride = self.stride[0] // 2, self.stride[0]
        made = spread(x, self.weight, stride)[:, half : half + x.shape[1] * stride]
        return made if self.bias is None else made + self.bias


class Doubling(nn.ConvTranspose1d):
    """Twice the steps, each channel by itself: a kernel of three and a stride of two."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, 2, 1, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        before, at, after = self.weight[:, 0].unbind(-1)
        following = F.pad(x[:, 1:], (0, 0, 0, 1))
        made = torch.stack([x * at, x * after + following * before], dim=2).flatten(1, 2)
        return made if self.bias is None else made + self.bias


class AdaptiveNorm(nn.Module):
    """Each channel of each row to the level and spread that a style asks for."""

    def __init__(self, channels: int, style: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def asked(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Gain and offset [B, C] that a style [B, S] asks for."""
        gain, offset = self.fc(style).chunk(2, dim=-1)
        return 1.0 + gain, offset

    def forward(self, x: Tensor, style: Tensor, valid: Valid) -> Tensor:
        gain, offset = affine(moments(x, valid), *self.asked(style))
        return torch.addcmul(offset.unsqueeze(1), x, gain.unsqueeze(1))


def moments(x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
    """Mean and variance [B, C] over the valid steps."""
    count = valid.counts.unsqueeze(-1)
    mean = valid.clean(x).sum(1) / count
    return mean, valid.clean(x - mean.unsqueeze(1)).square().sum(1) / count


def affine(found: tuple[Tensor, Tensor], gain: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and summand [B, C] that turn what has the moments `found` into what is asked for."""
    mean, variance = found
    factor = gain * torch.rsqrt(variance + _EPSILON)
    return factor, offset - mean * factor


class AdaptiveBlock(nn.Module):
    """Two normed convolutions beside a shortcut; `doubles` makes two steps of each."""

    def __init__(self, channels: int, out: int, style: int, *, doubles: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = AdaptiveNorm(channels, style), AdaptiveNorm(out, style)
        self.conv1 = Convolution(channels, out, 3, padding=1)
        self.conv2 = Convolution(out, out, 3, padding=1)
        self.conv1x1 = Convolution(channels, out, 1, bias=False) if channels != out else None
        self.pool = Doubling(channels) if doubles else None

    def forward(self, x: Tensor, style: Tensor, valid: Valid) -> tuple[Tensor, Valid]:
        """Take [B, T, C], padding ignored; return [B, T or 2 T, out], padding undefined."""
        made = valid.clean(F.leaky_relu(self.norm1(x, style, valid), 0.2))
        if self.pool is not None:
            made, x, valid = self.pool(made), x.repeat_interleave(2, dim=1), valid.times(2)
            made = valid.clean(made)
        made = self.conv1(made)
        made = self.conv2(valid.clean(F.leaky_relu(self.norm2(made, style, valid), 0.2)))
        return (made + (x if self.conv1x1 is None else self.conv1x1(x))) * 0.5**0.5, valid
