"""A recording to the vector of its speaker: an ECAPA-TDNN over mel bands, in float32.

Source: Qwen3TTSSpeakerEncoder of QwenLM/Qwen3-TTS; https://huggingface.co/papers/2005.07143.
"""

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.models.checkpoint.spec import SpeakerEncoderSpec
from serve_app.models.voice_encoder.mel import MelSpectrogram

_LEAST_VARIANCE: Final = 1e-12


class SpeakerEncoder:
    """float32 [N] of 24 kHz to float32 [output_size].

    Args:
        spec: of the checkpoint.
        tensors: under `speaker_encoder.`, any dtype.
        device: where it runs.
    """

    def __init__(
        self, spec: SpeakerEncoderSpec, tensors: Mapping[str, Tensor], device: torch.device
    ) -> None:
        self._spec = spec
        self._weights = {name: tensor.to(device, torch.float32) for name, tensor in tensors.items()}
        self._mel = MelSpectrogram(spec.num_mel_bands, spec.sample_rate_hz, device)

    def __call__(self, samples: Tensor) -> Tensor:
        spec = self._spec
        x = self._tdnn("blocks.0", self._mel(samples)[None], spec.dilations[0])
        blocks = []
        for i in range(1, len(spec.channels) - 1):
            x = self._block(f"blocks.{i}", x, spec.dilations[i])
            blocks.append(x)
        x = self._tdnn("mfa", torch.cat(blocks, dim=1), spec.dilations[-1])
        return self._conv("fc", self._pooled(x))[0, :, 0]

    def _block(self, name: str, x: Tensor, dilation: int) -> Tensor:
        """TDNN, Res2Net, TDNN, squeeze and excitation, around which x passes by."""
        parts = self._tdnn(f"{name}.tdnn1", x).chunk(self._spec.res2net_scale, dim=1)
        # Each part but the first two hears what the one before it made.
        done = [parts[0]]
        for i, part in enumerate(parts[1:]):
            heard = part + done[-1] if i else part
            done.append(self._tdnn(f"{name}.res2net_block.blocks.{i}", heard, dilation))
        y = self._tdnn(f"{name}.tdnn2", torch.cat(done, dim=1))
        squeezed = F.relu(self._conv(f"{name}.se_block.conv1", y.mean(dim=2, keepdim=True)))
        return y * torch.sigmoid(self._conv(f"{name}.se_block.conv2", squeezed)) + x

    def _pooled(self, x: Tensor) -> Tensor:
        """Mean and deviation over time as attention weighs it: [1, C, T] to [1, 2 C, 1]."""
        even = torch.full_like(x[:, :1], 1.0 / x.shape[2])
        context = [y.expand_as(x) for y in _statistics(x, even)]
        heard = torch.tanh(self._tdnn("asp.tdnn", torch.cat([x, *context], dim=1)))
        weights = F.softmax(self._conv("asp.conv", heard), dim=2)
        return torch.cat(_statistics(x, weights), dim=1)

    def _tdnn(self, name: str, x: Tensor, dilation: int = 1) -> Tensor:
        return F.relu(self._conv(f"{name}.conv", x, dilation))

    def _conv(self, name: str, x: Tensor, dilation: int = 1) -> Tensor:
        """As long as its input, whose ends are mirrored."""
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        missing = dilation * (weight.shape[2] - 1)
        if missing:
            x = F.pad(x, (missing // 2, missing - missing // 2), mode="reflect")
        return F.conv1d(x, weight, bias, dilation=dilation)


def _statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and deviation over time, [1, C, 1] each; the weights sum to one."""
    mean = (weights * x).sum(2, keepdim=True)
    variance = (weights * (x - mean).pow(2)).sum(2, keepdim=True)
    return mean, torch.sqrt(variance.clamp(min=_LEAST_VARIANCE))
