"""The network of the speech decoder, as a pure function of codes and state, and that state.

`SpeechDecoderModel` holds weights; `DecoderState` holds the histories of many streams in one arena.
Every layer is causal and keeps its own history, so each sample is computed once, any chunking gives
the offline result up to rounding, and no sample depends on a later frame.
Source: speech tokenizer decoder of Qwen3-TTS 12Hz (QwenLM/Qwen3-TTS, tokenizer_12hz).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.errors import CheckpointError
from serve_app.models.checkpoint import SPEECH_WEIGHTS
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

# Constants of the reference's decoder class; no configuration file carries them.
_PRE_KERNEL: Final = 3
_KERNEL: Final = 7
_DILATIONS: Final = (1, 3, 9)
_CONVNEXT_EPS: Final = 1e-6
_CODEBOOK_EPS: Final = 1e-5
_SNAKE_EPS: Final = 1e-9
# Row parts start at multiples of this many values, so that vectorised loads stay aligned.
_ALIGNMENT: Final = 64


def context_frames(spec: SpeechDecoderSpec) -> int:
    """Count the frames before a frame that its samples depend on (580 in the release).

    Walks back from the first sample of a frame: a convolution of kernel k and dilation d reaches
    (k-1)*d columns further, a transposed one of kernel 2r divides the reach by its stride r,
    rounded up, and adds a column.
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
    """
    y = conv_of_padded(padded, conv, None, dilation=dilation)[:, : x.shape[1]]
    y = snake(y, *activation)
    x.flatten(0, 1).addmm_(y.flatten(0, 1), mix.T)
    return x


@dataclass(frozen=True, slots=True)
class Kernels:
    """The passes that libraries do badly on a GPU, as one exchangeable set; by default eager."""

    snake_padded: Callable[..., Tensor] = snake_padded
    add_residual: Callable[..., Tensor] = add_residual
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
    """The histories of all layers for some rows: an arena of stream slots, or one step's batch.

    position: int64 [rows], frames decoded so far.
    values: model dtype [rows, layout.size]; all zero at the start of a stream. One flat row per
        stream, so that gathering and scattering a batch is one kernel each.
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


class _Block(nn.Module):
    """A part of the decoder; `load` sets its weights, its state is in the `DecoderState` given."""

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
        return self.kernels.add_residual(
            x, padded, self.conv, self.act2.arguments, self.mix, dilation
        )


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
    """The network: codes and state in, samples and advanced state out; nothing of any stream."""

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

        Codebooks are divided and projected in float32; e^alpha, 1/e^beta and the last convolution
        stay float32.

        Raises:
            CheckpointError: a tensor is missing. (`checkpoint.open_checkpoint` has verified the
                shapes.)
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
            codes: int64 [B, Q, T], T >= 1, values in [0, codebook_size). Only frames not yet
                decoded.
            state: row b continues the stream of codes[b]; rows may stand at different positions.

        Returns:
            float32 [B, T * samples_per_frame] in [-1, 1] at `spec.sample_rate_hz` (float64 in a
            float64 model).

        Raises:
            ValueError: Q is not `spec.num_code_groups`, T is 0, or the state has another number of
                rows.

        Any split of a stream gives the samples of one call, up to rounding
        (tests/parity/test_speech_decoder.py).
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
        """Return [Q, codebook_size, codebook_dim]: codebooks divided by usage and projected."""
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
