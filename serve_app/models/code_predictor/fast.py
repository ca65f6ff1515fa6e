"""The code predictor on CUDA: the eager model's frame in few kernels.

For one stream a layer is five kernels that do without matrix units and fetch their weights while
the kernel before them runs; for some streams seven, with matrix products that stream their weights
into partial sums; for many the library's products win. Same interface and, up to rounding, the same
codes as `CodePredictor`; queries, new keys and everything elementwise stay in float32 longer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.models.checkpoint.spec import CodePredictorSpec
from serve_app.models.code_predictor.attention_kernel import attend
from serve_app.models.code_predictor.model import CodePredictor
from serve_app.models.layers.few_rows import (
    DETERMINISTIC_ROWS,
    Step,
    Tiles,
    library_layers,
    projected,
    tiled_layers,
    vector_layers,
)
from serve_app.models.layers.launch import can_overlap
from serve_app.models.layers.linear_kernels import add_norm, alternate, tiled_linear, vector_linear
from serve_app.models.sampling_kernel import sample_row

_VECTOR = Tiles(qkv=16, output=4, gate_up=16, down=4, head=8)
_WIDE = Tiles(qkv=32, output=64, gate_up=32, down=64, head=16)
_NARROW = Tiles(qkv=32, output=32, gate_up=32, down=32, head=16)


@dataclass(frozen=True, slots=True)
class PredictorPlan:
    """How to run; measured by load_tests/stages/code_predictor.py.

    vector_rows: up to this many rows, products do without matrix units; `vector` has their tiles,
        `residual` is the dtype of the residual stream between them.
    library_rows: from this many rows on, the library multiplies.
    tiled: tiles of the products between these two, which stream their weights; `splits` has the
        partial sums of output and down, `stages` says how far they stream ahead.
    attention_warps, sample_warps: per program.
    pdl: overlap the start of each kernel with the end of the one before, where the device can.
    tile_rows: of the streamed products; see `tiled_linear`.
    """

    vector_rows: int = 0
    vector: Tiles = _VECTOR
    residual: torch.dtype = torch.bfloat16
    library_rows: int = 1 << 30
    tiled: Tiles = _WIDE
    splits: tuple[int, int] = (8, 12)
    stages: int = 4
    attention_warps: int = 1
    sample_warps: int = 8
    pdl: bool = True
    tile_rows: int | None = None


# One way for every batch, in which no row's sums depend on the others.
DETERMINISTIC: Final = PredictorPlan(
    tiled=_NARROW, splits=(4, 6), pdl=False, tile_rows=DETERMINISTIC_ROWS
)

# By the largest batch they are for; what measured best on an H200 (docs/performance.md).
PLANS: tuple[tuple[int, PredictorPlan], ...] = (
    (1, PredictorPlan(vector_rows=2)),
    (40, PredictorPlan(pdl=False)),
    (100, PredictorPlan(tiled=_NARROW, splits=(4, 6))),
    (1 << 30, PredictorPlan(library_rows=1)),
)


class FastCodePredictor(CodePredictor):
    """See CodePredictor; `plan` says how to run, for every batch size instead of PLANS."""

    def __init__(
        self,
        spec: CodePredictorSpec,
        tensors: Mapping[str, Tensor],
        codec_embedding: Tensor,
        device: torch.device,
        dtype: torch.dtype,
        plan: PredictorPlan | None = None,
    ) -> None:
        super().__init__(spec, tensors, codec_embedding, device, dtype)
        self.plans = PLANS if plan is None else ((1 << 30, plan),)
        if not can_overlap(device):
            self.plans = tuple((most, replace(each, pdl=False)) for most, each in self.plans)
        self.layers = [replace(layer, gate_up=alternate(layer.gate_up)) for layer in self.layers]

    def _rotary_tables(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines in float32, each angle once."""
        angles = self._rotary_angles()
        return angles.cos().to(self.device), angles.sin().to(self.device)

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
        rows, groups = hidden.shape[0], self.spec.num_code_groups
        cache = self.new_cache(rows)
        codes = torch.empty(rows, groups - 1, dtype=torch.int64, device=self.device)
        first = self._project_fixed(hidden.to(self.dtype), self.plan_for(rows))
        x = torch.stack((first, self.code_tables[0][code_0]), dim=1)
        following = torch.empty_like(first)
        position, plan = 0, self.plan_for(rows)
        for group in range(1, groups):
            logits = self.logits(x, cache, position, group)
            table = self.code_tables[group] if group < groups - 1 else None
            sample_row(
                logits, seed, frame, temperature, top_k, top_p, group, group - 1, codes, table,
                following, plan.sample_warps, plan.pdl,
            )  # fmt: skip
            position += x.shape[1]
            x = following[:, None]
        return codes

    def _project_fixed(self, rows: Tensor, plan: PredictorPlan) -> Tensor:
        """`_project`, by the plan's tiles if it has any."""
        if self.projection is None or plan.tile_rows is None:
            return self._project(rows)
        weight, bias = self.projection
        out = rows.new_empty(1, len(rows), len(weight), dtype=torch.float32)
        tiles, fixed = plan.tiled.output, plan.tile_rows
        product = tiled_linear(rows.contiguous(), weight, out, tiles, tile_rows=fixed)
        return (product[0] + bias.float()).to(rows.dtype)

    def plan_for(self, batch: int) -> PredictorPlan:
        """How to run a batch of that many streams."""
        return next(plan for most, plan in self.plans if batch <= most)

    def new_cache(self, rows: int) -> Tensor:
        """Keys and values of one frame, not yet written: [layers, 2, B, kv heads, Q, head_dim]."""
        shape, groups = self.spec.transformer, self.spec.num_code_groups
        size = (shape.num_layers, 2, rows, shape.num_kv_heads, groups, shape.head_dim)
        return torch.empty(size, device=self.device, dtype=self.dtype)

    def logits(self, x: Tensor, cache: Tensor, start: int, group: int) -> Tensor:
        """Float32 logits [B, vocab] of `group`; x: inputs [B, S, h] of positions from `start`."""
        flat = x.view(-1, x.shape[-1])
        plan = self.plan_for(cache.shape[2])
        if len(flat) >= plan.library_rows:
            forward = self._library
        else:
            forward = self._vector if len(flat) <= plan.vector_rows else self._tiled
        return forward(plan, flat, cache, start, self.heads[group - 1])

    def _vector(
        self, plan: PredictorPlan, x: Tensor, cache: Tensor, start: int, head: Tensor
    ) -> Tensor:
        eps, fresh = self.spec.transformer.rms_norm_eps, len(x) // cache.shape[2]
        attend = self._attention(plan, x, cache, start)
        x = vector_layers(
            self.layers, x, attend, eps, plan.vector,
            qkv_dtype=torch.float32, residual=plan.residual, pdl=plan.pdl,
        )  # fmt: skip
        last = x[fresh - 1 :: fresh]
        logits = x.new_empty(len(last), len(head), dtype=torch.float32)
        norm = (self.norm, eps)
        return vector_linear(last, head, logits, plan.vector.head, norm=norm, pdl=plan.pdl)

    def _tiled(
        self, plan: PredictorPlan, x: Tensor, cache: Tensor, start: int, head: Tensor
    ) -> Tensor:
        eps, fresh = self.spec.transformer.rms_norm_eps, len(x) // cache.shape[2]
        attend = self._attention(plan, x, cache, start)
        delta = tiled_layers(
            self.layers, x, attend, eps, plan.tiled, plan.splits, plan.stages,
            qkv_dtype=torch.float32, pdl=plan.pdl, tile_rows=plan.tile_rows,
        )  # fmt: skip
        last = add_norm(x, delta, self.norm, eps, plan.pdl)[fresh - 1 :: fresh]
        logits = x.new_empty(len(last), len(head), dtype=torch.float32)
        return tiled_linear(
            last, head, logits, plan.tiled.head,
            stages=plan.stages, pdl=plan.pdl, tile_rows=plan.tile_rows,
        )  # fmt: skip

    def _library(
        self, plan: PredictorPlan, x: Tensor, cache: Tensor, start: int, head: Tensor
    ) -> Tensor:
        eps, fresh = self.spec.transformer.rms_norm_eps, len(x) // cache.shape[2]
        attention = projected(self.layers, self._attention(plan, x, cache, start))
        delta = library_layers(self.layers, x, attention, eps, pdl=plan.pdl)
        normed = add_norm(x, delta, self.norm, eps, plan.pdl)
        return F.linear(normed[fresh - 1 :: fresh], head).float()

    def _attention(self, plan: PredictorPlan, x: Tensor, cache: Tensor, start: int) -> Step:
        """Attention of each layer over its part of `cache`, from position `start` on."""
        shape, rotary = self.spec.transformer, (self.cos, self.sin)
        out = x.new_empty(len(x), shape.num_heads * shape.head_dim)

        def step(index: int, qkv: Tensor) -> Tensor:
            weights = self.layers[index]
            return attend(
                qkv, weights.q_norm, weights.k_norm, shape.rms_norm_eps, rotary, cache[index],
                start, out, plan.attention_warps, plan.pdl,
            )  # fmt: skip

        return step
