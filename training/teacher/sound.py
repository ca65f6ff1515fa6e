"""From phonemes, melody and loudness by steps to samples."""

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.teacher.activation import adapted_snake
from training.teacher.layers import (
    AdaptiveBlock,
    AdaptiveNorm,
    Convolution,
    Upsampling,
    Valid,
    spread,
)
from training.teacher.shape import TeacherShape

_RATE_HZ: Final = 24_000
_VOICED_HZ: Final = 10.0
_SINE: Final = 0.1
_SILENT: Final = 1e-6


class Harmonics(nn.Module):
    """Sines at the multiples of a melody, mixed to one wave."""

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.hold = shape.source_samples
        self.l_linear = nn.Linear(shape.harmonics, 1)

    def forward(self, melody: Tensor) -> Tensor:
        """Take Hz [B, T], zero in the padding; return the wave [B, T * hold].

        Phases run on from the middle of one value to that of the next. They are summed in cycles
        as float64 and taken modulo one: float32 would lose the high harmonics of long sentences.
        """
        count = self.l_linear.in_features
        multiples = torch.arange(1, count + 1, device=melody.device, dtype=melody.dtype)
        turns = (melody.unsqueeze(-1) * multiples / _RATE_HZ) % 1.0
        middles = (turns.double() * self.hold).cumsum(1)
        middles = (middles % 1.0).to(melody.dtype)
        # Before the first middle the phase rests there, as it does after the last.
        first, rest = middles[:, :1], F.pad(turns[:, 1:], (0, 0, 0, 1))
        places = (torch.arange(self.hold, device=melody.device) + 0.5).to(melody.dtype)
        cycles = middles.unsqueeze(2) + rest.unsqueeze(2) * places.view(1, 1, -1, 1)
        half = self.hold // 2
        start = first.unsqueeze(2).expand(-1, 1, half, -1).flatten(1, 2)
        cycles = torch.cat([start, cycles.flatten(1, 2)[:, : -(self.hold - half)]], dim=1)
        voiced = (melody > _VOICED_HZ).repeat_interleave(self.hold, dim=1).unsqueeze(-1)
        waves = _SINE * torch.sin(2 * torch.pi * (cycles % 1.0)) * voiced
        return self.l_linear(waves).squeeze(-1).tanh()


class SnakeBlock(nn.Module):
    """Three pairs of normed convolutions, the first of each pair ever wider."""

    def __init__(self, channels: int, kernel: int, style: int) -> None:
        super().__init__()
        widths = (1, 3, 5)
        self.adain1, self.adain2 = (
            nn.ModuleList(AdaptiveNorm(channels, style) for _ in widths) for _ in range(2)
        )
        self.alpha1, self.alpha2 = (
            nn.ParameterList(torch.ones(channels) for _ in widths) for _ in range(2)
        )
        self.convs1, self.convs2 = (
            nn.ModuleList(
                Convolution(channels, channels, kernel, padding=kernel // 2 * width, dilation=width)
                for width in wide
            )
            for wide in (widths, (1, 1, 1))
        )

    @property
    def kind(self) -> torch.dtype:
        """Of the convolutions, and of what passes between them."""
        weight = self.convs1[0].weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def halve(self) -> None:
        """Convolve in float16: as exact as TF32, twice as fast; no value comes near its limit."""
        self.convs1.half()
        self.convs2.half()

    def forward(self, x: Tensor, style: Tensor, valid: Valid) -> Tensor:
        """Take [B, T, C], return the same in `kind`, padding ignored and undefined.

        Norms take off what is constant in a channel, so biases within the block have no effect on
        it. Those of the way out are added at the end, and the tensors are read less often.
        """
        first = zip(self.adain1, self.alpha1, self.convs1, strict=True)
        second = zip(self.adain2, self.alpha2, self.convs2, strict=True)
        x, bias = x.to(self.kind), torch.zeros_like(self.alpha1[0], dtype=self.kind)
        for one, two in zip(first, second, strict=True):
            made = x
            for norm, alpha, convolution in (one, two):
                assert isinstance(norm, AdaptiveNorm)
                assert isinstance(convolution, Convolution)
                heard = adapted_snake(made, norm.asked(style), alpha, valid)
                made = convolution.unbiased(heard)
            x = made.add_(x)
            last = two[2].bias
            assert isinstance(last, Tensor)
            bias = bias + last
        return x.add_(bias)


class Generator(nn.Module):
    """From features to spectra, with harmonics as a second input, and from spectra to samples."""

    window_sum: Tensor
    inverse_basis: Tensor
    window: Tensor

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.shape = shape
        self.m_source = Harmonics(shape)
        bins, (near, far) = shape.fft + 2, shape.channels
        rate = shape.upsampling[1]
        self.noise_convs = nn.ModuleList(
            [Convolution(bins, near, 2 * rate, rate, rate // 2), Convolution(bins, far, 1)]
        )
        self.noise_res = nn.ModuleList(
            [SnakeBlock(near, 7, shape.style), SnakeBlock(far, 11, shape.style)]
        )
        self.ups = nn.ModuleList(
            Upsampling(channels, out, stride)
            for channels, out, stride in zip(
                (shape.decoder // 2, near), shape.channels, shape.upsampling, strict=True
            )
        )
        self.resblocks = nn.ModuleList(
            SnakeBlock(channels, kernel, shape.style)
            for channels in shape.channels
            for kernel in shape.kernels
        )
        self.conv_post = Convolution(far, bins, 7, padding=3)
        self.register_buffer("inverse_basis", torch.randn(bins, 1, shape.fft))
        self.register_buffer("window_sum", torch.ones(shape.fft))
        self.register_buffer("window", torch.hann_window(shape.fft), persistent=False)

    def halve(self) -> None:
        """Let the blocks convolve in float16."""
        for module in self.modules():
            if isinstance(module, SnakeBlock):
                module.halve()

    def forward(self, x: Tensor, style: Tensor, melody: Tensor, valid: Valid) -> Tensor:
        """Take [B, T, C] and Hz [B, T, 1], zero in the padding; return samples [B, T * hold]."""
        wave = self.m_source(melody.squeeze(-1))
        near = valid.times(self.shape.upsampling[0])
        far = near.times(self.shape.upsampling[1], more=1)
        source = far.clean(self._spectra(wave, valid.times(self.shape.source_samples)))
        for stage, span in enumerate((near, far)):
            x = F.leaky_relu(x, 0.1)
            beside = self.noise_res[stage](self.noise_convs[stage](source), style, span)
            x = self.ups[stage](x)
            if span is far:
                x = torch.cat([x[:, 1:2], x], dim=1)
            x += beside
            del beside
            count = len(self.shape.kernels)
            blocks = self.resblocks[stage * count : (stage + 1) * count]
            made = blocks[0](x, style, span)
            for block in blocks[1:]:
                made += block(x, style, span)
            x = span.clean(made.div_(count)).float()
        return self._samples(far.clean(self.conv_post(F.leaky_relu(x, 0.01))), far)

    def _spectra(self, wave: Tensor, valid: Valid) -> Tensor:
        """Return sizes and angles [B, spectra, fft + 2]; each row is mirrored at its ends."""
        edge, hop = self.shape.fft // 2, self.shape.hop
        places = torch.arange(-edge, valid.size + edge, device=wave.device).abs()
        last = valid.counts.unsqueeze(-1) - 1
        places = torch.where(places > last, 2 * last - places, places).clamp(min=0)
        frames = wave.gather(1, places).unfold(1, self.shape.fft, hop) * self.window
        found = torch.view_as_real(torch.fft.rfft(frames))
        real, imaginary = found.unbind(-1)
        size = (real.square() + imaginary.square()).sqrt()
        # As in the teacher's training, 0 counts as positive: a negative real number is at +pi.
        # Where nothing sounds, the angle would be that of rounding errors.
        angle = torch.atan2(imaginary.masked_fill(imaginary == 0, 1e-20), real)
        return torch.cat([size, angle.masked_fill(size < _SILENT, 0.0)], dim=-1)

    def _samples(self, logits: Tensor, valid: Valid) -> Tensor:
        sizes, angles = logits.float().chunk(2, dim=-1)
        sizes, angles = sizes.exp(), angles.sin()
        spectra = valid.clean(torch.cat([sizes * angles.cos(), sizes * angles.sin()], dim=-1))
        wave = spread(spectra, self.inverse_basis, self.shape.hop).squeeze(-1)
        fft = self.shape.fft
        # The export divides by the windows' sum where it was traced: in the first samples alone.
        wave[:, :fft] /= torch.where(self.window_sum > 0, self.window_sum, 1.0)
        return wave[:, fft // 2 : -(fft // 2)] * (fft / self.shape.hop)


class Decoder(nn.Module):
    """Phonemes, melody and loudness by steps to samples."""

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        wide, style = shape.decoder, shape.style
        beside = wide + shape.residual + 2
        self.F0_conv, self.N_conv = (Convolution(1, 1, 3, 2, 1) for _ in range(2))
        self.asr_res = Convolution(shape.hidden, shape.residual, 1)
        self.encode = AdaptiveBlock(shape.hidden + 2, wide, style)
        self.decode = nn.ModuleList(AdaptiveBlock(beside, wide, style) for _ in range(3))
        self.decode.append(AdaptiveBlock(beside, wide // 2, style, doubles=True))
        self.generator = Generator(shape)

    def forward(
        self, phonemes: Tensor, melody: Tensor, loudness: Tensor, style: Tensor, valid: Valid
    ) -> Tensor:
        """Take [B, T, hidden], and [B, 2 T, 1] that are zero in the padding; return samples."""
        curves = [self.F0_conv(melody), self.N_conv(loudness)]
        x, _ = self.encode(torch.cat([phonemes, *curves], dim=-1), style, valid)
        beside = [self.asr_res(phonemes), *curves]
        for block in self.decode:
            x, valid = block(torch.cat([x, *beside], dim=-1), style, valid)
        return self.generator(valid.clean(x), style, melody, valid)
