"""Code predictor: fills code groups 1..Q-1 of one frame from the talker's hidden state and code 0.

A frame is Q - 1 dependent passes over at most Q positions, with a key/value cache that starts
empty; nothing survives a frame, so any replica can serve any call. The whole frame, sampling
included, is one function of tensors without host synchronisation: eager on CPU, one CUDA graph per
batch size on GPU.

Source: code predictor ("sub-talker") of QwenLM/Qwen3-TTS 12Hz; model spec section 4.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.models.checkpoint.spec import CodePredictorSpec
from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.layers.reference import rms_norm, rotate
from serve_app.models.sampling import sample, uniform


@dataclass(frozen=True, slots=True)
class PredictorLayer:
    """One decoder layer, projections joined along the output axis."""

    input_norm: Tensor
    qkv: Tensor
    q_norm: Tensor
    k_norm: Tensor
    output: Tensor
    post_norm: Tensor
    gate_up: Tensor
    down: Tensor


class CodePredictor:
    """The eager model; the reference for every faster version.

    Args:
        spec: shapes, from the checkpoint.
        tensors: the checkpoint's `talker.code_predictor.` tensors, prefix stripped.
        codec_embedding: [talker vocab, H] of the talker, which embeds code 0.
        device, dtype: where and how precisely to run.
    """

    def __init__(
        self,
        spec: CodePredictorSpec,
        tensors: Mapping[str, Tensor],
        codec_embedding: Tensor,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.spec = spec
        self.device = device
        self.dtype = dtype

        def take(name: str) -> Tensor:
            return tensors[name].to(device, dtype)

        self.projection: tuple[Tensor, Tensor] | None = None
        if spec.has_projection:
            prefix = "small_to_mtp_projection"
            self.projection = (take(f"{prefix}.weight"), take(f"{prefix}.bias"))
        groups = range(spec.num_code_groups - 1)
        # The projection is a per-row function, so the tables can hold projected rows. The last
        # group's code is never fed back within a frame.
        self.code_tables = [self._project(codec_embedding.to(device, dtype))] + [
            self._project(take(f"model.codec_embedding.{g}.weight")) for g in groups[:-1]
        ]
        self.heads = [take(f"lm_head.{g}.weight") for g in groups]
        self.norm = take("model.norm.weight")
        self.layers = [
            self._layer(f"model.layers.{i}", take) for i in range(spec.transformer.num_layers)
        ]
        self.cos, self.sin = self._rotary_tables()

    def _project(self, rows: Tensor) -> Tensor:
        return F.linear(rows, *self.projection) if self.projection else rows

    @staticmethod
    def _layer(prefix: str, take: Callable[[str], Tensor]) -> PredictorLayer:
        def weight(name: str) -> Tensor:
            return take(f"{prefix}.{name}.weight")

        return PredictorLayer(
            input_norm=weight("input_layernorm"),
            qkv=torch.cat([weight(f"self_attn.{n}_proj") for n in "qkv"]),
            q_norm=weight("self_attn.q_norm"),
            k_norm=weight("self_attn.k_norm"),
            output=weight("self_attn.o_proj"),
            post_norm=weight("post_attention_layernorm"),
            gate_up=torch.cat([weight("mlp.gate_proj"), weight("mlp.up_proj")]),
            down=weight("mlp.down_proj"),
        )

    def _rotary_angles(self) -> Tensor:
        """Angles by position, each once: float32 [Q, head_dim / 2] on the CPU."""
        shape = self.spec.transformer
        exponent = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        places = torch.arange(self.spec.num_code_groups, dtype=torch.float32)
        return torch.outer(places, shape.rope_theta**-exponent)

    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        angles = self._rotary_angles()
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(self.device, self.dtype), both.sin().to(self.device, self.dtype)

    @torch.inference_mode()
    def predict(self, batch: FrameBatch) -> Tensor:
        """Codes of groups 1..Q-1: int64 [B, Q - 1]."""
        return self.frame(*batch.tensors())

    def frame(
        self,
        hidden: Tensor,
        code_0: Tensor,
        seed: Tensor,
        frame: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
    ) -> Tensor:
        """`predict` on bare tensors (see FrameBatch): the function that CUDA graphs capture."""
        shape, rows = self.spec.transformer, hidden.shape[0]
        cache = torch.empty(
            (
                shape.num_layers,
                2,
                rows,
                shape.num_kv_heads,
                self.spec.num_code_groups,
                shape.head_dim,
            ),
            device=self.device,
            dtype=self.dtype,
        )
        first = self._project(hidden.to(self.dtype))
        x = torch.stack((first, self.code_tables[0][code_0]), dim=1)
        position, codes = 0, []
        for group in range(1, self.spec.num_code_groups):
            y = self._forward(x, cache, position)[:, -1]
            logits = F.linear(y, self.heads[group - 1]).float()
            code = sample(logits, temperature, top_k, top_p, uniform(seed, frame, group))
            codes.append(code)
            position += x.shape[1]
            if group < self.spec.num_code_groups - 1:
                x = self.code_tables[group][code][:, None]
        return torch.stack(codes, dim=1)

    def _forward(self, x: Tensor, cache: Tensor, start: int) -> Tensor:
        """Run new positions [B, S, h], the first at `start`, through all layers and the norm."""
        shape = self.spec.transformer
        eps, rows, new = shape.rms_norm_eps, x.shape[0], x.shape[1]
        end = start + new
        cos, sin = self.cos[start:end], self.sin[start:end]
        heads = [shape.num_heads, shape.num_kv_heads, shape.num_kv_heads]
        for weights, (keys, values) in zip(self.layers, cache, strict=True):
            qkv = F.linear(rms_norm(x, weights.input_norm, eps), weights.qkv)
            q, k, v = (
                part.view(rows, new, -1, shape.head_dim).transpose(1, 2)
                for part in qkv.split([n * shape.head_dim for n in heads], dim=-1)
            )
            keys[:, :, start:end] = rotate(rms_norm(k, weights.k_norm, eps), cos, sin)
            values[:, :, start:end] = v
            attended = F.scaled_dot_product_attention(
                rotate(rms_norm(q, weights.q_norm, eps), cos, sin),
                keys[:, :, :end],
                values[:, :, :end],
                is_causal=start == 0,
                enable_gqa=True,
            )
            x = x + F.linear(attended.transpose(1, 2).reshape(rows, new, -1), weights.output)
            gate, up = F.linear(rms_norm(x, weights.post_norm, eps), weights.gate_up).chunk(
                2, dim=-1
            )
            x = x + F.linear(F.silu(gate) * up, weights.down)
        return rms_norm(x, self.norm, eps)
