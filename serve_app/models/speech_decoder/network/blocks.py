"""The blocks of the speech decoder's network, each with its weights and its part of the state.

Source: speech tokenizer decoder of Qwen3-TTS 12Hz (QwenLM/Qwen3-TTS, tokenizer_12hz).
"""

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint.files import SPEECH_WEIGHTS
from serve_app.models.checkpoint.spec import SpeechDecoderSpec
from serve_app.models.layers.reference import rms_norm, rotate
from serve_app.models.speech_decoder.network.causal import (
    conv_weight,
    transposed_conv_of_padded,
    transposed_conv_weight,
    windowed_attention,
)
from serve_app.models.speech_decoder.network.passes import Passes
from serve_app.models.speech_decoder.network.state import DecoderState

# Constants of the reference's decoder class; no configuration file carries them.
KERNEL: Final = 7
DILATIONS: Final = (1, 3, 9)
_CONVNEXT_EPS: Final = 1e-6
_SNAKE_EPS: Final = 1e-9


def vocoder_widths(spec: SpeechDecoderSpec) -> tuple[int, ...]:
    """Channels before the first block of the vocoder and behind each."""
    return tuple(spec.decoder_dim >> index for index in range(len(spec.upsample_rates) + 1))


class Weights:
    """Checked tensors of a checkpoint, converted as they are taken."""

    def __init__(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype = dtype
        # What must not be rounded to bfloat16 is kept here; float64 models (tests) stay float64
        # throughout.
        self.wide = torch.promote_types(dtype, torch.float32)
        self._tensors = tensors
        self._device = device

    def raw(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise CheckpointError(SPEECH_WEIGHTS, f"tensor decoder.{name} is missing")
        return self._tensors[name].to(self._device, self.wide)

    def take(self, name: str) -> Tensor:
        return self.raw(name).to(self.dtype)

    def conv(self, name: str) -> Tensor:
        return conv_weight(self.take(name))


class Block(nn.Module):
    """A part of the decoder; `load` sets its weights, its state is in the `DecoderState` given."""

    def set(self, **buffers: Tensor) -> None:
        for name, tensor in buffers.items():
            self.register_buffer(
                name, tensor.contiguous() if tensor.dim() < 3 else tensor, persistent=False
            )


class TransformerLayer(Block):
    """Pre-norm sliding-window attention and SwiGLU, each scaled per channel before it is added."""

    norm1: Tensor
    norm2: Tensor
    scale1: Tensor
    scale2: Tensor
    qkv: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor

    def __init__(self, spec: SpeechDecoderSpec, index: int) -> None:
        super().__init__()
        self._spec = spec.transformer
        self._name = f"pre_transformer.layers.{index}"
        self._cache_shape = (spec.sliding_window - 1, self._spec.num_kv_heads, self._spec.head_dim)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {f"{self._name}.key": self._cache_shape, f"{self._name}.value": self._cache_shape}

    def load(self, weights: Weights) -> None:
        name, take = self._name, weights.take
        self.set(
            norm1=take(f"{name}.input_layernorm.weight"),
            norm2=take(f"{name}.post_attention_layernorm.weight"),
            scale1=take(f"{name}.self_attn_layer_scale.scale"),
            scale2=take(f"{name}.mlp_layer_scale.scale"),
            qkv=torch.cat([take(f"{name}.self_attn.{part}_proj.weight") for part in "qkv"]),
            out=take(f"{name}.self_attn.o_proj.weight"),
            gate_up=torch.cat([take(f"{name}.mlp.{part}_proj.weight") for part in ("gate", "up")]),
            down=take(f"{name}.mlp.down_proj.weight"),
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, state: DecoderState
    ) -> Tensor:
        spec = self._spec
        heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        mixed = F.linear(rms_norm(x, self.norm1, spec.rms_norm_eps), self.qkv).unflatten(
            -1, (-1, spec.head_dim)
        )
        query, key, value = mixed.split(heads, 2)
        cached_key, cached_value = state[f"{self._name}.key"], state[f"{self._name}.value"]
        attended, next_key, next_value = windowed_attention(
            rotate(query, cos, sin), rotate(key, cos, sin), value, cached_key, cached_value, mask
        )
        cached_key.copy_(next_key)
        cached_value.copy_(next_value)
        x = torch.addcmul(x, F.linear(attended, self.out), self.scale1)
        gate, up = F.linear(rms_norm(x, self.norm2, spec.rms_norm_eps), self.gate_up).chunk(2, -1)
        return torch.addcmul(x, F.linear(F.silu(gate) * up, self.down), self.scale2)


class Upsample(Block):
    """A transposed convolution without overlap, then a ConvNeXt block."""

    up: Tensor
    up_bias: Tensor
    depthwise: Tensor
    depthwise_bias: Tensor
    norm: Tensor
    norm_bias: Tensor
    expand: Tensor
    expand_bias: Tensor
    reduce: Tensor
    reduce_bias: Tensor
    gamma: Tensor

    def __init__(self, spec: SpeechDecoderSpec, index: int) -> None:
        super().__init__()
        self._width, self._ratio, self._name = (
            spec.latent_dim,
            spec.upsampling_ratios[index],
            f"upsample.{index}",
        )
        self.passes = Passes()

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self._name: (KERNEL - 1, self._width)}

    def load(self, weights: Weights) -> None:
        name, take = self._name, weights.take
        self.set(
            up=transposed_conv_weight(take(f"{name}.0.conv.weight"), self._ratio).squeeze(2),
            up_bias=take(f"{name}.0.conv.bias").repeat(self._ratio),
            depthwise=take(f"{name}.1.dwconv.conv.weight"),
            depthwise_bias=take(f"{name}.1.dwconv.conv.bias"),
            norm=take(f"{name}.1.norm.weight"),
            norm_bias=take(f"{name}.1.norm.bias"),
            expand=take(f"{name}.1.pwconv1.weight"),
            expand_bias=take(f"{name}.1.pwconv1.bias"),
            reduce=take(f"{name}.1.pwconv2.weight"),
            reduce_bias=take(f"{name}.1.pwconv2.bias"),
            gamma=take(f"{name}.1.gamma"),
        )

    def forward(self, x: Tensor, state: DecoderState) -> Tensor:
        x = F.linear(x, self.up, self.up_bias).reshape(x.shape[0], -1, self._width)
        history = state[self._name]
        padded = torch.cat((history, x), 1)
        history.copy_(padded[:, x.shape[1] :])
        y = self.passes.depthwise_conv(padded, self.depthwise, self.depthwise_bias)
        y = F.layer_norm(y, (self._width,), self.norm, self.norm_bias, _CONVNEXT_EPS)
        y = F.linear(
            F.gelu(F.linear(y, self.expand, self.expand_bias)), self.reduce, self.reduce_bias
        )
        return torch.addcmul(x, y, self.gamma)


class Snake(Block):
    """The parameters of one Snake, in float32, and the pending biases that it adds to its input."""

    shift: Tensor
    alpha_exp: Tensor
    inverse_beta: Tensor

    def load(self, weights: Weights, name: str, shift: Tensor) -> None:
        alpha, beta = weights.raw(f"{name}.alpha"), weights.raw(f"{name}.beta")
        self.set(
            shift=shift.clone(),
            alpha_exp=alpha.exp(),
            inverse_beta=1.0 / (beta.exp() + _SNAKE_EPS),
        )

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.shift, self.alpha_exp, self.inverse_beta


class ResidualUnit(Block):
    """Snake, dilated convolution, Snake, 1x1 convolution, added to the input.

    Biases are not added here: that would be one more pass over the largest tensors. They accumulate
    along the residual stream, and each Snake adds what is pending at its place.
    """

    conv: Tensor
    mix: Tensor

    def __init__(self, name: str, width: int, dilation: int) -> None:
        super().__init__()
        self._name, self._width, self._dilation = name, width, dilation
        self.passes = Passes()
        self.act1, self.act2 = Snake(), Snake()

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self._name: ((KERNEL - 1) * self._dilation, self._width)}

    def load(self, weights: Weights, pending: Tensor) -> Tensor:
        """Take the weights; `pending` biases are missing in the input, the result in the output."""
        name = self._name
        self.act1.load(weights, f"{name}.act1", pending)
        self.act2.load(weights, f"{name}.act2", weights.raw(f"{name}.conv1.conv.bias"))
        self.set(
            conv=weights.conv(f"{name}.conv1.conv.weight"),
            mix=weights.take(f"{name}.conv2.conv.weight").squeeze(2),
        )
        return pending + weights.raw(f"{name}.conv2.conv.bias")

    def forward(self, x: Tensor, state: DecoderState) -> Tensor:
        """Add to x [B, L, C] in place and return it."""
        history = state[self._name]
        context, dilation = history.shape[1], self._dilation
        padded = self.passes.snake_padded(x, history, *self.act1.arguments, dilation)
        history.copy_(padded[:, x.shape[1] : x.shape[1] + context])
        return self.passes.add_residual(
            x, padded, self.conv, self.act2.arguments, self.mix, dilation
        )


class VocoderBlock(Block):
    """Snake, transposed convolution, three residual units; biases stay pending as in the units."""

    up: Tensor

    def __init__(self, spec: SpeechDecoderSpec, index: int) -> None:
        super().__init__()
        widths = vocoder_widths(spec)
        self._name = f"decoder.{index + 1}.block"
        self._before, self._rate = widths[index], spec.upsample_rates[index]
        self.units = nn.ModuleList(
            ResidualUnit(f"{self._name}.{unit + 2}", widths[index + 1], dilation)
            for unit, dilation in enumerate(DILATIONS)
        )
        self.passes = Passes()
        self.act = Snake()

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {self._name: (1, self._before)}
        for unit in self.units:
            assert isinstance(unit, ResidualUnit)
            shapes |= unit.state_shapes()
        return shapes

    def load(self, weights: Weights, pending: Tensor) -> Tensor:
        """Take the weights; `pending` biases are missing in the input, the result in the output."""
        self.act.load(weights, f"{self._name}.0", pending)
        up = transposed_conv_weight(weights.take(f"{self._name}.1.conv.weight"), self._rate)
        self.set(up=conv_weight(up))
        pending = weights.raw(f"{self._name}.1.conv.bias")
        for unit in self.units:
            assert isinstance(unit, ResidualUnit)
            pending = unit.load(weights, pending)
        return pending

    def forward(self, x: Tensor, state: DecoderState) -> Tensor:
        history = state[self._name]
        padded = self.passes.snake_padded(x, history, *self.act.arguments)
        history.copy_(padded[:, -1:])
        x = transposed_conv_of_padded(padded, self.up, None, stride=self._rate).contiguous()
        for unit in self.units:
            x = unit(x, state)
        return x
