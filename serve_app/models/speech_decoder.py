"""Codec frames to waveform, exactly and statefully: the speech decoder of the Qwen3-TTS 12Hz speech tokenizer.

`SpeechDecoderModel` is the network as a pure function of codes and state; `DecoderState` holds the state of many
streams in one arena; `SpeechDecoderRunner` is the one thread that decodes whoever is due, in batches, through CUDA
graphs where there is CUDA; `StreamingSpeechDecoder` is the async face that the pipeline sees. Every layer is causal and
keeps its own history, so each sample is computed once, any chunking gives the offline result up to rounding, and no
sample depends on a later frame.
"""

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.config import SpeechDecoderConfig
from serve_app.errors import CheckpointError, Overloaded, StageFailed, StageUnavailable
from serve_app.models.checkpoint import SPEECH_WEIGHTS, Checkpoint
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import DeviceSpec, resolve_device
from serve_app.models.spec import SpeechDecoderSpec
from serve_app.models.streaming import (
    causal_conv,
    conv_of_padded,
    conv_weight,
    rotary,
    rotate,
    transposed_conv_of_padded,
    transposed_conv_weight,
    window_mask,
    windowed_attention,
)
from serve_app.types import CodecFrames, PcmChunk

_LOGGER = logging.getLogger(__name__)

# Constants of the reference's decoder class; no configuration file carries them.
_PRE_KERNEL: Final = 3
_KERNEL: Final = 7
_DILATIONS: Final = (1, 3, 9)
_CONVNEXT_EPS: Final = 1e-6
_CODEBOOK_EPS: Final = 1e-5
_SNAKE_EPS: Final = 1e-9
# The reference decodes 300 frames at a time from a fresh state, fed with the 25 frames before them.
_REFERENCE_CHUNK_FRAMES: Final = 300
_REFERENCE_CONTEXT_FRAMES: Final = 25

_INT16_SCALE: Final = 32767.0
# Row parts start at multiples of this many values, so that vectorised loads stay aligned.
_ALIGNMENT: Final = 64
# Activations of one step are kept below this; about four tensors of the widest stage are alive at once.
_MAX_STEP_BYTES: Final = 2 << 30
_LIVE_TENSORS: Final = 4


def context_frames(spec: SpeechDecoderSpec) -> int:
    """Count the frames before a frame that its samples depend on (580 in the release).

    Walks back from the first sample of a frame: a convolution of kernel k and dilation d reaches (k-1)*d columns
    further, a transposed one of kernel 2r divides the reach by its stride r, rounded up, and adds a column.
    """
    columns = _KERNEL - 1
    for rate in reversed(spec.upsample_rates):
        columns += sum((_KERNEL - 1) * dilation for dilation in _DILATIONS)
        columns = math.ceil(columns / rate) + 1
    columns += _KERNEL - 1
    for ratio in reversed(spec.upsampling_ratios):
        columns = math.ceil((columns + _KERNEL - 1) / ratio)
    return _PRE_KERNEL - 1 + spec.transformer.num_layers * (spec.sliding_window - 1) + columns


def _vocoder_widths(spec: SpeechDecoderSpec) -> tuple[int, ...]:
    return tuple(spec.decoder_dim >> index for index in range(len(spec.upsample_rates) + 1))


def snake(x: Tensor, shift: Tensor, alpha_exp: Tensor, inverse_beta: Tensor) -> Tensor:
    """Return z + sin(z * e^alpha)^2 / e^beta for z = x + shift, per channel (the last dimension).

    Computed in the dtype of the parameters, since bfloat16 loses the phase of the sine; only the
    result is rounded. `shift` is the bias of the layers before, which costs no pass of its own here.
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
    """Return `history` [B, P, C], snake(x) [B, L, C], and zeros to a multiple of `multiple` columns."""
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


@dataclass(frozen=True, slots=True)
class Kernels:
    """The passes that libraries do badly on a GPU, exchangeable as one set; these are the reference."""

    snake: Callable[..., Tensor] = snake
    snake_padded: Callable[..., Tensor] = snake_padded
    depthwise_conv: Callable[..., Tensor] = depthwise_conv
    waveform: Callable[..., Tensor] = waveform


@dataclass(frozen=True, slots=True)
class StateLayout:
    """Where each named history lies in a row of a `DecoderState`: offset in values, and shape."""

    parts: Mapping[str, tuple[int, tuple[int, ...]]]
    size: int

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> "StateLayout":
        """Lay the parts one after the other."""
        parts, offset = {}, 0
        for name, shape in shapes.items():
            parts[name] = (offset, shape)
            offset += -(-math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
        return cls(parts, offset)


@dataclass(frozen=True, slots=True)
class DecoderState:
    """The histories of all layers for a number of rows: an arena of stream slots, or the batch of one step.

    position: int64 [rows], frames decoded so far.
    values: model dtype [rows, layout.size]; all zero at the start of a stream. One flat row per stream, so that
        gathering and scattering a batch is one kernel each.
    """

    layout: StateLayout
    position: Tensor
    values: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """View one part of every row: [rows, *shape]."""
        offset, shape = self.layout.parts[name]
        return self.values.narrow(1, offset, math.prod(shape)).unflatten(1, shape)

    @property
    def num_rows(self) -> int:
        return self.values.shape[0]

    def gather(self, slots: Tensor) -> "DecoderState":
        """Copy the rows `slots` (int64 [B]) out."""
        # Eight bytes at a time: indexing kernels move one element per thread.
        values = self.values.view(torch.int64)[slots].view(self.values.dtype)
        return DecoderState(self.layout, self.position[slots], values)

    def scatter(self, slots: Tensor, rows: "DecoderState") -> None:
        """Copy `rows` back to `slots`; of a slot named twice one of the rows survives."""
        self.position.index_copy_(0, slots, rows.position)
        wide = rows.values.view(torch.int64)
        self.values.view(torch.int64).index_copy_(0, slots, wide)

    def reset(self, slot: int) -> None:
        """Put one row at the start of a stream."""
        self.position[slot].zero_()
        self.values[slot].zero_()


class _Weights:
    """Checked tensors of a checkpoint, converted as they are taken."""

    def __init__(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.dtype = dtype
        # What must not be rounded to bfloat16 is kept here; float64 models (tests) stay float64 throughout.
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


class _Block(nn.Module):
    """A part of the decoder; its weights are buffers set by `load`, its per-stream state lives in `DecoderState`."""

    def set(self, **buffers: Tensor) -> None:
        for name, tensor in buffers.items():
            self.register_buffer(
                name, tensor.contiguous() if tensor.dim() < 3 else tensor, persistent=False
            )


class _TransformerLayer(_Block):
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

    def load(self, weights: _Weights) -> None:
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
        mixed = F.linear(_rms_norm(x, self.norm1, spec.rms_norm_eps), self.qkv).unflatten(
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
        gate, up = F.linear(_rms_norm(x, self.norm2, spec.rms_norm_eps), self.gate_up).chunk(2, -1)
        return torch.addcmul(x, F.linear(F.silu(gate) * up, self.down), self.scale2)


class _Upsample(_Block):
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
        self.kernels = Kernels()

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self._name: (_KERNEL - 1, self._width)}

    def load(self, weights: _Weights) -> None:
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
        y = self.kernels.depthwise_conv(padded, self.depthwise, self.depthwise_bias)
        y = F.layer_norm(y, (self._width,), self.norm, self.norm_bias, _CONVNEXT_EPS)
        y = F.linear(
            F.gelu(F.linear(y, self.expand, self.expand_bias)), self.reduce, self.reduce_bias
        )
        return torch.addcmul(x, y, self.gamma)


class _Snake(_Block):
    """The parameters of one Snake, in float32, and the pending biases that it adds to its input."""

    shift: Tensor
    alpha_exp: Tensor
    inverse_beta: Tensor

    def load(self, weights: _Weights, name: str, shift: Tensor) -> None:
        alpha, beta = weights.raw(f"{name}.alpha"), weights.raw(f"{name}.beta")
        self.set(
            shift=shift.clone(),
            alpha_exp=alpha.exp(),
            inverse_beta=1.0 / (beta.exp() + _SNAKE_EPS),
        )

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.shift, self.alpha_exp, self.inverse_beta


class _ResidualUnit(_Block):
    """Snake, dilated convolution, Snake, 1x1 convolution, added to the input.

    Biases are not added here: that would be one more pass over the largest tensors. They accumulate
    along the residual stream, and each Snake adds what is pending at its place.
    """

    conv: Tensor
    mix: Tensor

    def __init__(self, name: str, width: int, dilation: int) -> None:
        super().__init__()
        self._name, self._width, self._dilation = name, width, dilation
        self.kernels = Kernels()
        self.act1, self.act2 = _Snake(), _Snake()

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {self._name: ((_KERNEL - 1) * self._dilation, self._width)}

    def load(self, weights: _Weights, pending: Tensor) -> Tensor:
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
        padded = self.kernels.snake_padded(x, history, *self.act1.arguments, dilation)
        history.copy_(padded[:, x.shape[1] : x.shape[1] + context])
        y = conv_of_padded(padded, self.conv, None, dilation=dilation)[:, : x.shape[1]]
        y = self.kernels.snake(y, *self.act2.arguments)
        x.flatten(0, 1).addmm_(y.flatten(0, 1), self.mix.T)
        return x


class _VocoderBlock(_Block):
    """Snake, transposed convolution, three residual units; biases stay pending as in the units."""

    up: Tensor

    def __init__(self, spec: SpeechDecoderSpec, index: int) -> None:
        super().__init__()
        widths = _vocoder_widths(spec)
        self._name = f"decoder.{index + 1}.block"
        self._before, self._rate = widths[index], spec.upsample_rates[index]
        self.units = nn.ModuleList(
            _ResidualUnit(f"{self._name}.{unit + 2}", widths[index + 1], dilation)
            for unit, dilation in enumerate(_DILATIONS)
        )
        self.kernels = Kernels()
        self.act = _Snake()

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {self._name: (1, self._before)}
        for unit in self.units:
            assert isinstance(unit, _ResidualUnit)
            shapes |= unit.state_shapes()
        return shapes

    def load(self, weights: _Weights, pending: Tensor) -> Tensor:
        """Take the weights; `pending` biases are missing in the input, the result in the output."""
        self.act.load(weights, f"{self._name}.0", pending)
        up = transposed_conv_weight(weights.take(f"{self._name}.1.conv.weight"), self._rate)
        self.set(up=conv_weight(up))
        pending = weights.raw(f"{self._name}.1.conv.bias")
        for unit in self.units:
            assert isinstance(unit, _ResidualUnit)
            pending = unit.load(weights, pending)
        return pending

    def forward(self, x: Tensor, state: DecoderState) -> Tensor:
        history = state[self._name]
        padded = self.kernels.snake_padded(x, history, *self.act.arguments)
        history.copy_(padded[:, -1:])
        x = transposed_conv_of_padded(padded, self.up, None, stride=self._rate).contiguous()
        for unit in self.units:
            x = unit(x, state)
        return x


class SpeechDecoderModel(_Block):
    """The network: codes and state in, samples and advanced state out. Holds weights, nothing of any stream."""

    tables: Tensor
    table_offsets: Tensor
    pre_conv: Tensor
    pre_conv_bias: Tensor
    project_in: Tensor
    project_in_bias: Tensor
    final_norm: Tensor
    project_out: Tensor
    project_out_bias: Tensor
    first_conv: Tensor
    last_conv: Tensor
    last_conv_bias: Tensor

    def __init__(self, spec: SpeechDecoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dtype = torch.float32
        self._wide = torch.float32
        self.kernels = Kernels()
        self.layers = nn.ModuleList(
            _TransformerLayer(spec, i) for i in range(spec.transformer.num_layers)
        )
        self.upsample = nn.ModuleList(
            _Upsample(spec, i) for i in range(len(spec.upsampling_ratios))
        )
        self.last_act = _Snake()
        self.blocks = nn.ModuleList(_VocoderBlock(spec, i) for i in range(len(spec.upsample_rates)))
        widths = _vocoder_widths(spec)
        shapes: dict[str, tuple[int, ...]] = {"pre_conv": (_PRE_KERNEL - 1, spec.codebook_dim)}
        for part in (*self.layers, *self.upsample, *self.blocks):
            assert isinstance(part, _TransformerLayer | _Upsample | _VocoderBlock)
            shapes |= part.state_shapes()
        shapes["first_conv"] = (_KERNEL - 1, spec.latent_dim)
        shapes["last_conv"] = (_KERNEL - 1, widths[-1])
        self.state_layout = StateLayout.of(shapes)

    def load(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> "SpeechDecoderModel":
        """Take the weights under their released names without the prefix "decoder.".

        Codebooks are divided and projected in float32; e^alpha, 1/e^beta and the last convolution stay float32.

        Raises:
            CheckpointError: a tensor is missing. (`checkpoint.open_checkpoint` has verified the shapes.)
        """
        weights = _Weights(tensors, dtype, torch.device(device))
        self.dtype, self._wide = dtype, weights.wide
        tables = self._projected_codebooks(weights)
        last = len(self.spec.upsample_rates) + 1
        self.set(
            tables=tables.flatten(0, 1),
            table_offsets=torch.arange(len(tables), device=tables.device) * self.spec.codebook_size,
            pre_conv=weights.conv("pre_conv.conv.weight"),
            pre_conv_bias=weights.take("pre_conv.conv.bias"),
            project_in=weights.take("pre_transformer.input_proj.weight"),
            project_in_bias=weights.take("pre_transformer.input_proj.bias"),
            final_norm=weights.take("pre_transformer.norm.weight"),
            project_out=weights.take("pre_transformer.output_proj.weight"),
            project_out_bias=weights.take("pre_transformer.output_proj.bias"),
            first_conv=weights.conv("decoder.0.conv.weight"),
            last_conv=weights.raw(f"decoder.{last + 1}.conv.weight"),
            last_conv_bias=weights.raw(f"decoder.{last + 1}.conv.bias"),
        )
        for part in (*self.layers, *self.upsample):
            assert isinstance(part, _TransformerLayer | _Upsample)
            part.load(weights)
        pending = weights.raw("decoder.0.conv.bias")
        for block in self.blocks:
            assert isinstance(block, _VocoderBlock)
            pending = block.load(weights, pending)
        self.last_act.load(weights, f"decoder.{last}", pending)
        if tables.is_cuda and dtype in (torch.float32, torch.bfloat16):
            from serve_app.models.kernels_decoder import KERNELS

            self.use_kernels(KERNELS)
        return self

    def new_state(self, rows: int) -> DecoderState:
        """Allocate `rows` rows at the start of a stream, on the device of the weights."""
        device = self.tables.device
        return DecoderState(
            self.state_layout,
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, self.state_layout.size, dtype=self.dtype, device=device),
        )

    def use_kernels(self, kernels: Kernels) -> None:
        """Exchange the passes that `Kernels` names."""
        for module in self.modules():
            if isinstance(module, SpeechDecoderModel | _Upsample | _VocoderBlock | _ResidualUnit):
                module.kernels = kernels

    @torch.no_grad()
    def decode(self, codes: Tensor, state: DecoderState) -> Tensor:
        """Decode fresh codec frames, advancing `state` in place.

        Args:
            codes: int64 [B, Q, T], T >= 1, values in [0, codebook_size). Only frames not yet decoded.
            state: row b continues the stream of codes[b]; rows may stand at different positions.

        Returns:
            float32 [B, T * samples_per_frame] in [-1, 1] at `spec.sample_rate_hz` (float64 in a float64 model).

        Raises:
            ValueError: Q is not `spec.num_code_groups`, T is 0, or the state has another number of rows.

        Any split of a stream gives the samples of one call, up to rounding (tests/parity/test_speech_decoder.py).
        Source: decoder of QwenLM/Qwen3-TTS, tokenizer_12hz.
        """
        num_rows, num_groups, num_frames = codes.shape
        if num_groups != self.spec.num_code_groups or num_frames == 0 or state.num_rows != num_rows:
            raise ValueError(
                f"codes {tuple(codes.shape)} with a state of {state.num_rows} rows, expected"
                f" [{state.num_rows}, {self.spec.num_code_groups}, T >= 1]"
            )
        x = self._dequantise(codes)
        x = self._remember(x, state, "pre_conv", self.pre_conv, self.pre_conv_bias)
        x = self._transform(x, state)
        for block in self.upsample:
            x = block(x, state)
        x = self._remember(x, state, "first_conv", self.first_conv, None)
        for block in self.blocks:
            x = block(x, state)
        history = state["last_conv"]
        padded = self.kernels.snake_padded(x, history, *self.last_act.arguments)
        history.copy_(padded[:, x.shape[1] :])
        state.position.add_(num_frames)
        return self.kernels.waveform(padded, self.last_conv, self.last_conv_bias)

    def _projected_codebooks(self, weights: _Weights) -> Tensor:
        """Return [Q, codebook_size, codebook_dim]: each codebook divided by its usage and projected."""
        tables = []
        for half, num_layers in (("rvq_first", 1), ("rvq_rest", self.spec.num_code_groups - 1)):
            projection = weights.raw(f"quantizer.{half}.output_proj.weight").squeeze(2)
            for layer in range(num_layers):
                codebook = f"quantizer.{half}.vq.layers.{layer}._codebook"
                usage = weights.raw(f"{codebook}.cluster_usage").clamp(min=_CODEBOOK_EPS)
                tables.append(
                    weights.raw(f"{codebook}.embedding_sum") / usage[:, None] @ projection.T
                )
        return torch.stack(tables)

    def _dequantise(self, codes: Tensor) -> Tensor:
        """Sum one table row per code group: int64 [B, Q, T] to model dtype [B, T, codebook_dim]."""
        rows = codes.transpose(1, 2) + self.table_offsets
        summed = F.embedding_bag(rows.flatten(0, 1), self.tables, mode="sum")
        return summed.view(*rows.shape[:2], -1).to(self.dtype)

    def _transform(self, x: Tensor, state: DecoderState) -> Tensor:
        spec = self.spec.transformer
        num_frames = x.shape[1]
        cos, sin = rotary(state.position, num_frames, spec.head_dim, spec.rope_theta, self._wide)
        mask = window_mask(state.position, num_frames, self.spec.sliding_window)
        x = F.linear(x, self.project_in, self.project_in_bias)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, state)
        return F.linear(
            _rms_norm(x, self.final_norm, spec.rms_norm_eps),
            self.project_out,
            self.project_out_bias,
        )

    @staticmethod
    def _remember(
        x: Tensor, state: DecoderState, name: str, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        history = state[name]
        y, kept = causal_conv(x, history, weight, bias)
        history.copy_(kept)
        return y


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 products on CUDA use TensorFloat-32, or forbid it; the flags are global to the process."""
    flags: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.cudnn, "conv"))
    before = [flag.fp32_precision for flag in flags]
    for flag in flags:
        flag.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.fp32_precision = value


@dataclass(slots=True, eq=False)
class _Job:
    """Frames of one stream that wait for the decoder, done in one or more pieces."""

    codes: np.ndarray
    reset: bool
    discard: bool
    future: "Future[np.ndarray]"
    submitted_s: float
    next_frame: int = 0
    samples: list[np.ndarray] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Stream:
    """A slot in use: its jobs, in order, and how far its listener can play."""

    slot: int
    jobs: deque[_Job] = field(default_factory=deque)
    fresh: bool = True
    first_audio_s: float | None = None
    delivered_samples: int = 0

    def urgency(self, sample_rate_hz: int) -> tuple[int, float]:
        """Order of service: streams without audio by age, then the stream whose listener runs dry first."""
        if self.first_audio_s is None:
            return 0, self.jobs[0].submitted_s
        return 1, self.first_audio_s + self.delivered_samples / sample_rate_hz


class SpeechDecoderRunner:
    """The model, the states of all streams, and the one thread that decodes.

    Each step takes the most urgent stream, fills the batch with streams that can decode as many frames, and does them
    in one call: a CUDA graph per (streams, frames) that gathers the states, decodes and scatters them back, or the
    same function eagerly. Only the thread touches the device after construction; every method may be called from any
    thread.

    Args:
        model: loaded, on its device.
        max_streams: slots of the arena.
        chunk_frames: chunk lengths to be fast at; longer or other jobs are cut into these and single frames.
        batch_sizes: numbers of streams to be fast at.
        exact: forbid TensorFloat-32 (parity tests); otherwise float32 on CUDA uses it.
        graphs: capture CUDA graphs; default: exactly on CUDA.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: SpeechDecoderModel,
        *,
        max_streams: int,
        chunk_frames: Sequence[int],
        batch_sizes: Sequence[int],
        exact: bool = False,
        graphs: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.spec = model.spec
        self.max_streams = max_streams
        self._clock = clock
        self._device = model.tables.device
        self._cuda = self._device.type == "cuda"
        self._graphs_enabled = self._cuda if graphs is None else graphs
        self._allow_tf32 = not exact
        # One row more than slots: what padded rows of a batch, warm-up and capture read and write.
        self._trash_slot = max_streams
        self._arena = model.new_state(max_streams + 1)
        self._sizes = self._piece_sizes(chunk_frames)
        self._batches = {
            size: self._batch_sizes(size, batch_sizes, max_streams) for size in self._sizes
        }
        self._stream = torch.cuda.Stream(self._device) if self._cuda else None
        self._event = torch.cuda.Event(blocking=True) if self._cuda else None
        self._graphs: dict[int, BatchGraphs] = {}
        self._host: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._build()

        self._wake = threading.Condition()
        self._free = deque(range(max_streams))
        self._streams: dict[int, _Stream] = {}
        self._failure: BaseException | None = None
        self._closing = False
        self._steps = 0
        self._frames = 0
        self._thread = threading.Thread(target=self._work, name="speech-decoder", daemon=True)
        self._thread.start()

    def acquire(self) -> int:
        """Take a free slot for a new stream.

        Raises:
            Overloaded: there is none.
            StageFailed, StageUnavailable: as `check_health`.
        """
        with self._wake:
            self._check()
            if not self._free:
                raise Overloaded(f"all {self.max_streams} streams of the speech decoder are in use")
            # First in, first out: a slot just released may still have a piece of its old stream on the device.
            slot = self._free.popleft()
            self._streams[slot] = _Stream(slot)
            return slot

    def release(self, slot: int) -> None:
        """Give the slot back; what its stream still has waiting is cancelled."""
        with self._wake:
            stream = self._streams.pop(slot)
            self._free.append(slot)
            jobs = list(stream.jobs)
            stream.jobs.clear()
        for job in jobs:
            job.future.cancel()

    def submit(
        self, slot: int, codes: np.ndarray, *, reset: bool = False, discard: bool = False
    ) -> "Future[np.ndarray]":
        """Decode frames of the stream in `slot`, after those submitted before.

        Args:
            slot: from `acquire`.
            codes: int64 [T, Q], T >= 1.
            reset: put the state at the start of a stream first (always done for a stream's first frames).
            discard: only advance the state; the result is empty.

        Returns:
            A future of int16 [T * samples_per_frame]. It fails with StageFailed when the device does.

        Raises:
            StageFailed: the codes have a wrong shape or are out of range, or the decoder is broken.
            StageUnavailable: the decoder is closed.
        """
        codes = self._checked(codes)
        future: Future[np.ndarray] = Future()
        with self._wake:
            self._check()
            stream = self._streams[slot]
            job = _Job(codes, reset or stream.fresh, discard, future, self._clock())
            stream.fresh = False
            stream.jobs.append(job)
            self._wake.notify()
        return future

    def stats(self) -> dict[str, float]:
        """Return streams, max_streams, waiting (jobs), and counters of steps and frames (padding not counted)."""
        with self._wake:
            return {
                "streams": len(self._streams),
                "max_streams": self.max_streams,
                "waiting": sum(len(stream.jobs) for stream in self._streams.values()),
                "steps": self._steps,
                "frames": self._frames,
            }

    def check_health(self) -> None:
        """Raise StageFailed after a failure of the device, StageUnavailable after `close()`."""
        with self._wake:
            self._check()

    def close(self) -> None:
        """Stop after the step in progress, join the thread and free the graphs; idempotent."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join()
        self._abandon(StageUnavailable("the speech decoder is shutting down"))
        for graphs in self._graphs.values():
            graphs.close()

    def _check(self) -> None:
        if self._failure is not None:
            raise StageFailed(f"the speech decoder failed: {self._failure!r}")
        if self._closing:
            raise StageUnavailable("the speech decoder is shutting down")
        if not self._thread.is_alive():
            raise StageFailed("the speech decoder's thread is gone")

    def _checked(self, codes: np.ndarray) -> np.ndarray:
        codes = np.ascontiguousarray(codes, dtype=np.int64)
        if codes.ndim != 2 or codes.shape[0] == 0 or codes.shape[1] != self.spec.num_code_groups:
            raise StageFailed(
                f"codes of shape {codes.shape}, expected [T >= 1, {self.spec.num_code_groups}]"
            )
        if codes.min() < 0 or codes.max() >= self.spec.codebook_size:
            raise StageFailed(
                f"codes from {codes.min()} to {codes.max()}, expected 0 to {self.spec.codebook_size - 1};"
                " control ids must be dropped before the speech decoder"
            )
        return codes

    def _piece_sizes(self, chunk_frames: Sequence[int]) -> tuple[int, ...]:
        """Return the piece lengths: the chunk lengths and 1 under graphs, else any up to the longest chunk."""
        if self._graphs_enabled:
            return tuple(sorted({1, *chunk_frames}))
        return tuple(range(1, max(chunk_frames) + 1))

    def _batch_sizes(
        self, num_frames: int, batch_sizes: Sequence[int], max_streams: int
    ) -> tuple[int, ...]:
        """Keep the batch sizes whose activations fit `_MAX_STEP_BYTES` and that so many streams can need."""
        widths = _vocoder_widths(self.spec)
        itemsize = self.model.tables.new_empty((), dtype=self.model.dtype).element_size()
        frame_bytes = _LIVE_TENSORS * self.spec.samples_per_frame * widths[-1] * itemsize
        limit = max(1, _MAX_STEP_BYTES // (frame_bytes * num_frames))
        needed = [size for size in sorted(batch_sizes) if size < max_streams]
        needed += [size for size in sorted(batch_sizes) if size >= max_streams][:1]
        return tuple(size for size in needed if size <= limit) or (1,)

    def _build(self) -> None:
        """Allocate host buffers and capture the graphs, small ones first; without graphs decode one frame."""
        start = time.monotonic()
        pool = torch.cuda.graph_pool_handle() if self._graphs_enabled else None
        for size in self._sizes:
            self._graphs[size] = BatchGraphs(
                lambda rows, size=size: (
                    torch.full((rows,), self._trash_slot, dtype=torch.int64, device=self._device),
                    torch.zeros(
                        (rows, self.spec.num_code_groups, size),
                        dtype=torch.int64,
                        device=self._device,
                    ),
                ),
                self._decode_slots,
                self._batches[size],
                pool=pool,
                enabled=self._graphs_enabled,
            )
            rows = self._graphs[size].max_batch
            self._host[size] = (
                torch.empty(rows, dtype=torch.int64, pin_memory=self._cuda),
                torch.empty(
                    rows, self.spec.num_code_groups, size, dtype=torch.int64, pin_memory=self._cuda
                ),
                torch.empty(
                    rows,
                    size * self.spec.samples_per_frame,
                    dtype=torch.int16,
                    pin_memory=self._cuda,
                ),
            )
        with self._on_stream():
            if self._graphs_enabled:
                shapes = [
                    (rows * size, rows, size)
                    for size in self._sizes
                    for rows in self._batches[size]
                ]
                for _, rows, size in sorted(shapes):
                    self._graphs[size].capture(rows)
            else:
                slots = torch.tensor([self._trash_slot], device=self._device)
                frame = torch.zeros(
                    1, self.spec.num_code_groups, 1, dtype=torch.int64, device=self._device
                )
                self._decode_slots(slots, frame)
            if self._stream is not None:
                self._stream.synchronize()
                # What the warm-up calls took lies outside the graphs' pool and is not needed again.
                torch.cuda.empty_cache()
        _LOGGER.info(
            "speech decoder ready on %s: %d streams, pieces of %s frames, %s, %.1f s",
            self._device,
            self.max_streams,
            self._sizes if self._graphs_enabled else f"1..{self._sizes[-1]}",
            "CUDA graphs" if self._graphs_enabled else "eager",
            time.monotonic() - start,
        )

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        return (
            torch.cuda.stream(self._stream)
            if self._stream is not None
            else contextlib.nullcontext()
        )

    def _decode_slots(self, slots: Tensor, codes: Tensor) -> Tensor:
        """Advance the streams in `slots` (int64 [B]) by codes (int64 [B, Q, T]); int16 [B, T * samples_per_frame]."""
        with tf32(self._allow_tf32) if self._cuda else contextlib.nullcontext():
            rows = self._arena.gather(slots)
            samples = self.model.decode(codes, rows)
            self._arena.scatter(slots, rows)
            return (samples * _INT16_SCALE).round_().to(torch.int16)

    def _work(self) -> None:
        """Decode whoever is due until closed; a failure ends the thread and every stream."""
        while True:
            with self._wake:
                while not self._closing and not any(
                    stream.jobs for stream in self._streams.values()
                ):
                    self._wake.wait()
                if self._closing:
                    return
                group, size = self._due()
            try:
                samples = self._step(group, size)
            except Exception as error:
                _LOGGER.exception("the speech decoder failed")
                with self._wake:
                    self._failure = error
                self._abandon(StageFailed(f"the speech decoder failed: {error!r}"))
                return
            self._deliver(group, size, samples)

    def _due(self) -> tuple[list[tuple[_Stream, _Job]], int]:
        """Pick the streams of the next step and the number of frames that each decodes; the lock is held."""
        ready = [stream for stream in self._streams.values() if stream.jobs]
        ready.sort(key=lambda stream: stream.urgency(self.spec.sample_rate_hz))
        size = self._next_size(ready[0].jobs[0])
        same = [
            (stream, stream.jobs[0]) for stream in ready if self._next_size(stream.jobs[0]) == size
        ]
        return same[: self._batches[size][-1]], size

    def _next_size(self, job: _Job) -> int:
        remaining = len(job.codes) - job.next_frame
        return max(size for size in self._sizes if size <= remaining)

    def _step(self, group: list[tuple[_Stream, _Job]], size: int) -> np.ndarray:
        """Decode one piece of each job; int16 [len(group), samples], valid until the next step."""
        num_rows = len(group)
        slots, codes, pcm = (buffer[:num_rows] for buffer in self._host[size])
        slot_view, code_view = slots.numpy(), codes.numpy()
        with self._on_stream():
            for row, (stream, job) in enumerate(group):
                if job.reset and job.next_frame == 0:
                    self._arena.reset(stream.slot)
                slot_view[row] = stream.slot
                code_view[row] = job.codes[job.next_frame : job.next_frame + size].T
            pcm.copy_(self._graphs[size](slots, codes), non_blocking=True)
            if self._event is not None:
                self._event.record()
                self._event.synchronize()
        return pcm.numpy()

    def _deliver(self, group: list[tuple[_Stream, _Job]], size: int, samples: np.ndarray) -> None:
        """Hand the samples of a step to their jobs and finish the jobs that are complete."""
        now = self._clock()
        finished: list[_Job] = []
        with self._wake:
            self._steps += 1
            self._frames += len(group) * size
            for (stream, job), row in zip(group, samples, strict=True):
                job.next_frame += size
                if not job.discard:
                    job.samples.append(row.copy())
                if job.next_frame < len(job.codes) or not stream.jobs:
                    continue
                stream.jobs.popleft()
                finished.append(job)
                if not job.discard:
                    stream.first_audio_s = (
                        now if stream.first_audio_s is None else stream.first_audio_s
                    )
                    stream.delivered_samples += len(job.codes) * self.spec.samples_per_frame
        for job in finished:
            if job.future.set_running_or_notify_cancel():
                job.future.set_result(
                    np.concatenate(job.samples) if job.samples else np.empty(0, np.int16)
                )

    def _abandon(self, error: Exception) -> None:
        """Fail every waiting job."""
        with self._wake:
            jobs = [job for stream in self._streams.values() for job in stream.jobs]
            for stream in self._streams.values():
                stream.jobs.clear()
        for job in jobs:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What to submit: the codes, whether the state starts over before them, whether their audio is thrown away."""

    codes: np.ndarray
    reset: bool = False
    discard: bool = False


class _ExactFeed:
    """Feed every frame once."""

    def __init__(self, num_context: int) -> None:
        self._num_context = num_context

    def prime(self, done: np.ndarray) -> list[_Piece]:
        """Bring the state behind `done` without audio; frames out of reach of every later sample are left out."""
        return [_Piece(done[-self._num_context :], discard=True)]

    def pieces(self, codes: np.ndarray) -> list[_Piece]:
        return [_Piece(codes)]


class _ReferenceFeed:
    """Start over every 300 frames from the 25 frames before, as the reference's offline decode does."""

    def __init__(self) -> None:
        self._num_fed = 0
        self._recent: np.ndarray | None = None

    def prime(self, done: np.ndarray) -> list[_Piece]:
        chunk = (len(done) - 1) // _REFERENCE_CHUNK_FRAMES * _REFERENCE_CHUNK_FRAMES
        self._advance(done)
        return [_Piece(done[max(0, chunk - _REFERENCE_CONTEXT_FRAMES) :], discard=True)]

    def pieces(self, codes: np.ndarray) -> list[_Piece]:
        pieces: list[_Piece] = []
        while len(codes):
            inside = self._num_fed % _REFERENCE_CHUNK_FRAMES
            if self._recent is not None and inside == 0:
                pieces.append(_Piece(self._recent, reset=True, discard=True))
            now, codes = np.split(codes, [_REFERENCE_CHUNK_FRAMES - inside])
            pieces.append(_Piece(now))
            self._advance(now)
        return pieces

    def _advance(self, codes: np.ndarray) -> None:
        self._num_fed += len(codes)
        before = codes if self._recent is None else np.concatenate((self._recent, codes))
        self._recent = before[-_REFERENCE_CONTEXT_FRAMES:]


class StreamingSpeechDecoder:
    """The speech decoder stage (protocols.SpeechDecoder): codec frames in, PCM out, many streams at once.

    Args:
        runner: owned from here on; `close()` closes it.
        reference_chunking: reproduce the reference's restart every 300 frames instead of the exact decode.
    """

    def __init__(self, runner: SpeechDecoderRunner, *, reference_chunking: bool = False) -> None:
        self._runner = runner
        self._spec = runner.spec
        self._num_context = context_frames(runner.spec)
        self._reference_chunking = reference_chunking

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        config: SpeechDecoderConfig,
        device: str,
        *,
        exact: bool = False,
    ) -> "StreamingSpeechDecoder":
        """Load the weights, allocate the arena and capture the graphs.

        Raises:
            CheckpointError: the checkpoint lacks a tensor or has another shape.
            StageUnavailable: CUDA is asked for and absent.
        """
        resolved = resolve_device(device, config.dtype)
        model = SpeechDecoderModel(checkpoint.spec.speech_decoder)
        model.load(checkpoint.speech_tokenizer_tensors("decoder."), resolved.dtype, resolved.device)
        return cls.of_model(model, config, resolved, exact=exact)

    @classmethod
    def of_model(
        cls,
        model: SpeechDecoderModel,
        config: SpeechDecoderConfig,
        device: DeviceSpec,
        *,
        exact: bool = False,
    ) -> "StreamingSpeechDecoder":
        """Build the runner around a loaded model."""
        runner = SpeechDecoderRunner(
            model,
            max_streams=config.max_streams,
            chunk_frames=config.chunk_frames,
            batch_sizes=config.batch_sizes,
            exact=exact,
            graphs=device.device.type == "cuda",
        )
        return cls(runner, reference_chunking=config.reference_chunking)

    async def pcm(
        self, frames: AsyncIterator[CodecFrames], done: np.ndarray | None = None
    ) -> AsyncGenerator[PcmChunk, None]:
        """Yield one chunk of samples per item of `frames`, in order; any chunking gives the same samples.

        Args:
            frames: the stream; closed when this generator ends, however it ends.
            done: int64 [T, Q], frames before the first of `frames` whose samples nobody wants. They prime the state.

        Yields:
            Chunks whose `first_sample` counts from frame 0 of the request, as `first_frame` of the items does.

        Raises:
            Overloaded: no stream slot is free. Before any sample.
            StageFailed: the device failed, or `frames` are not consecutive or not decodable.
        """
        try:
            slot = self._runner.acquire()
            try:
                feed = (
                    _ReferenceFeed() if self._reference_chunking else _ExactFeed(self._num_context)
                )
                if done is not None and len(done):
                    await self._decode(slot, feed.prime(done))
                expected: int | None = None
                async for item in frames:
                    if expected is not None and item.first_frame != expected:
                        raise StageFailed(f"frame {item.first_frame} follows frame {expected - 1}")
                    expected = item.first_frame + len(item.codes)
                    yield PcmChunk(
                        samples=await self._decode(
                            slot, feed.pieces(item.codes) if len(item.codes) else []
                        ),
                        first_sample=item.first_frame * self._spec.samples_per_frame,
                        codes=item.codes,
                        finish_reason=item.finish_reason,
                    )
            finally:
                self._runner.release(slot)
        finally:
            if isinstance(frames, AsyncGenerator):
                await frames.aclose()

    def stats(self) -> Mapping[str, float]:
        """Load: streams, max_streams, waiting jobs, and counters of steps and frames."""
        return self._runner.stats()

    def check_health(self) -> None:
        """Raise StageFailed after a failure of the device, StageUnavailable after `close()`."""
        self._runner.check_health()

    def close(self) -> None:
        """Stop the thread and free the graphs; idempotent."""
        self._runner.close()

    async def _decode(self, slot: int, pieces: list[_Piece]) -> np.ndarray:
        futures = [
            self._runner.submit(slot, p.codes, reset=p.reset, discard=p.discard) for p in pieces
        ]
        samples = [await asyncio.wrap_future(future) for future in futures]
        if len(samples) == 1:
            return samples[0]
        return np.concatenate(samples) if samples else np.empty(0, np.int16)
