"""The network of the speech decoder, as a pure function of codes and state.

`SpeechDecoderModel` holds weights, `DecoderState` the histories of many streams in one arena. Every
layer is causal and keeps its own history, so each sample is computed once, any chunking gives the
offline result up to rounding, and no sample depends on a later frame.
Source: speech tokenizer decoder of Qwen3-TTS 12Hz (QwenLM/Qwen3-TTS, tokenizer_12hz).
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from serve_app.models.checkpoint.spec import SpeechDecoderSpec
from serve_app.models.layers.reference import rms_norm
from serve_app.models.speech_decoder.network.blocks import (
    DILATIONS,
    KERNEL,
    Block,
    ResidualUnit,
    Snake,
    TransformerLayer,
    Upsample,
    VocoderBlock,
    Weights,
    vocoder_widths,
)
from serve_app.models.speech_decoder.network.causal import causal_conv, rotary, window_mask
from serve_app.models.speech_decoder.network.passes import Passes
from serve_app.models.speech_decoder.network.state import DecoderState, StateLayout

# Constants of the reference's decoder class; no configuration file carries them.
_PRE_KERNEL: Final = 3
_CODEBOOK_EPS: Final = 1e-5


def context_frames(spec: SpeechDecoderSpec) -> int:
    """Count the frames before a frame that its samples depend on (580 in the release)."""
    transformer = _PRE_KERNEL - 1 + spec.transformer.num_layers * (spec.sliding_window - 1)
    return transformer + vocoder_frames(spec)


def vocoder_frames(spec: SpeechDecoderSpec) -> int:
    """Count those of them that what follows the transformer depends on (10 in the release).

    Walks back from the first sample of a frame: a convolution of kernel k and dilation d reaches
    (k-1)*d columns further, a transposed one of kernel 2r divides the reach by its stride r,
    rounded up, and adds a column.
    """
    columns = KERNEL - 1
    for rate in reversed(spec.upsample_rates):
        columns += sum((KERNEL - 1) * dilation for dilation in DILATIONS)
        columns = math.ceil(columns / rate) + 1
    columns += KERNEL - 1
    for ratio in reversed(spec.upsampling_ratios):
        columns = math.ceil((columns + KERNEL - 1) / ratio)
    return columns


class SpeechDecoderModel(Block):
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
        self.passes = Passes()
        self.layers = nn.ModuleList(
            TransformerLayer(spec, i) for i in range(spec.transformer.num_layers)
        )
        self.upsample = nn.ModuleList(Upsample(spec, i) for i in range(len(spec.upsampling_ratios)))
        self.last_act = Snake()
        self.blocks = nn.ModuleList(VocoderBlock(spec, i) for i in range(len(spec.upsample_rates)))
        widths = vocoder_widths(spec)
        shapes: dict[str, tuple[int, ...]] = {"pre_conv": (_PRE_KERNEL - 1, spec.codebook_dim)}
        for part in (*self.layers, *self.upsample, *self.blocks):
            assert isinstance(part, TransformerLayer | Upsample | VocoderBlock)
            shapes |= part.state_shapes()
        shapes["first_conv"] = (KERNEL - 1, spec.latent_dim)
        shapes["last_conv"] = (KERNEL - 1, widths[-1])
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
        weights = Weights(tensors, dtype, torch.device(device))
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
            assert isinstance(part, TransformerLayer | Upsample)
            part.load(weights)
        pending = weights.raw("decoder.0.conv.bias")
        for block in self.blocks:
            assert isinstance(block, VocoderBlock)
            pending = block.load(weights, pending)
        self.last_act.load(weights, f"decoder.{last}", pending)
        if tables.is_cuda and dtype in (torch.float32, torch.bfloat16):
            from serve_app.models.speech_decoder.network.kernels import CUDA_PASSES

            self.use_passes(CUDA_PASSES)
        return self

    def new_state(self, rows: int) -> DecoderState:
        """Allocate `rows` rows at the start of a stream, on the device of the weights."""
        device = self.tables.device
        return DecoderState(
            self.state_layout,
            torch.zeros(rows, dtype=torch.int64, device=device),
            torch.zeros(rows, self.state_layout.size, dtype=self.dtype, device=device),
        )

    def use_passes(self, passes: Passes) -> None:
        """Exchange the passes that `Passes` names."""
        for module in self.modules():
            if isinstance(module, SpeechDecoderModel | Upsample | VocoderBlock | ResidualUnit):
                module.passes = passes

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
        x = self._latent(codes, state)
        for block in self.upsample:
            x = block(x, state)
        x = self._remember(x, state, "first_conv", self.first_conv, None)
        for block in self.blocks:
            x = block(x, state)
        history = state["last_conv"]
        padded = self.passes.snake_padded(x, history, *self.last_act.arguments)
        history.copy_(padded[:, x.shape[1] :])
        state.position.add_(codes.shape[2])
        return self.passes.waveform(padded, self.last_conv, self.last_conv_bias)

    @torch.no_grad()
    def prime(self, codes: Tensor, state: DecoderState) -> None:
        """Advance `state` in place past frames of which nobody wants the samples, at a small part
        of what `decode` takes.

        What follows the transformer is left where it is: `decode` of the last `vocoder_frames`
        before those whose samples are wanted puts it right.

        Args:
            codes: as of `decode`.
            state: as of `decode`.

        Raises:
            ValueError: as `decode`.
        """
        self._latent(codes, state)
        state.position.add_(codes.shape[2])

    def _latent(self, codes: Tensor, state: DecoderState) -> Tensor:
        """What the transformer makes of codes; the position is left to be advanced."""
        num_rows, num_groups, num_frames = codes.shape
        if num_groups != self.spec.num_code_groups or num_frames == 0 or state.num_rows != num_rows:
            raise ValueError(
                f"codes {tuple(codes.shape)} with a state of {state.num_rows} rows, expected"
                f" [{state.num_rows}, {self.spec.num_code_groups}, T >= 1]"
            )
        x = self._dequantise(codes)
        x = self._remember(x, state, "pre_conv", self.pre_conv, self.pre_conv_bias)
        return self._transform(x, state)

    def _projected_codebooks(self, weights: Weights) -> Tensor:
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
            rms_norm(x, self.final_norm, spec.rms_norm_eps),
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
