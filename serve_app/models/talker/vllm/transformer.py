"""The talker's layers on CUDA: vLLM's parameters and paged cache, our kernels.

For one stream a layer is six kernels, each of which fetches its weights while the one before it
runs; for some streams eight, with matrix products that stream their weights into partial sums; for
many the library multiplies. The same arithmetic as vLLM's Qwen3, with fewer roundings in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context

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
from serve_app.models.layers.linear_kernels import add_norm, alternate, tiled_linear
from serve_app.models.talker.vllm import attention_kernels

# Steps of more positions are prefills long enough that reading keys once per query would show.
MOST_POSITIONS: Final = 512
_HEAD_DIM: Final = 128

_VECTOR: Final = Tiles(qkv=16, output=4, gate_up=16, down=4)
_NARROW: Final = Tiles(qkv=32, output=32, gate_up=32, down=32)


@dataclass(frozen=True, slots=True)
class TalkerPlan:
    """How to run a number of rows; measured by load_tests/stages/talker_layers.py.

    products: without matrix units, streamed into partial sums, or the library's.
    tiles: of products that are not the library's.
    splits: partial sums of output and down, for streamed products.
    stages: tiles that a streamed product has in flight.
    pdl: overlap the start of each kernel with the end of the one before.
    tile_rows: of streamed products; see `tiled_linear`.
    """

    products: Literal["vector", "tiled", "library"]
    tiles: Tiles = _VECTOR
    splits: tuple[int, int] = (1, 1)
    stages: int = 4
    pdl: bool = True
    tile_rows: int | None = None


# One way for every step, in which no row's sums depend on the others: not on who else is decoded,
# and not on whether a position is prefilled or decoded.
DETERMINISTIC: Final = TalkerPlan("tiled", _NARROW, (4, 6), pdl=False, tile_rows=DETERMINISTIC_ROWS)

# By the largest number of rows they are for; what measured best on an H200 (docs/performance.md).
PLANS: Final[tuple[tuple[int, TalkerPlan], ...]] = (
    (1, TalkerPlan("vector")),
    (40, TalkerPlan("tiled", _NARROW, (4, 6), pdl=False)),
    (1 << 30, TalkerPlan("library")),
)


@dataclass(frozen=True, slots=True)
class _Layer:
    """What a layer needs, under the names of vLLM's Qwen3DecoderLayer."""

    input_norm: Tensor
    post_norm: Tensor
    qkv: Tensor
    output: Tensor
    gate_up: Tensor
    down: Tensor
    attention: Any

    @classmethod
    def of(cls, layer: Any) -> "_Layer":
        return cls(
            layer.input_layernorm.weight,
            layer.post_attention_layernorm.weight,
            layer.self_attn.qkv_proj.weight,
            layer.self_attn.o_proj.weight,
            layer.mlp.gate_up_proj.weight,
            layer.mlp.down_proj.weight,
            layer.self_attn,
        )


class OwnTransformer:
    """Runs a loaded `vllm...qwen3.Qwen3Model`, whose gate and up rows it interleaves in place.

    Args:
        model: with its weights; from here on it only runs through this.
        plans: by the largest number of rows they are for.
        most_positions: of a step whose attention is ours.
    """

    def __init__(
        self,
        model: Any,
        plans: Sequence[tuple[int, TalkerPlan]] = PLANS,
        most_positions: int = MOST_POSITIONS,
    ) -> None:
        self.plans = plans
        self._most_positions = most_positions
        self.layers = [_Layer.of(layer) for layer in model.layers]
        self._norm: Tensor = model.norm.weight
        self._eps: float = model.norm.variance_epsilon
        for layer in self.layers:
            layer.gate_up.data.copy_(alternate(layer.gate_up.data))

    @classmethod
    def deterministic(cls, model: Any) -> "OwnTransformer":
        """Layers in which the result of a position depends on its own stream only."""
        return cls(model, ((1 << 30, DETERMINISTIC),), most_positions=1 << 30)

    @staticmethod
    def suits(model: Any) -> bool:
        """Whether the kernels were made for such layers.

        That is: CUDA from Hopper on, bfloat16, the released shapes.
        """
        layer = model.layers[0]
        weight, attention = layer.self_attn.qkv_proj.weight, layer.self_attn
        hidden, intermediate = weight.shape[1], layer.mlp.down_proj.weight.shape[1]
        return (
            can_overlap(weight.device)
            and weight.dtype == torch.bfloat16
            and attention.head_dim == _HEAD_DIM
            and attention.attn.kv_cache_dtype in ("auto", "bfloat16")
            and hidden in (1024, 2048)
            and intermediate == 3 * hidden
        )

    def __call__(self, positions: Tensor, embeddings: Tensor) -> Tensor:
        """Hidden states behind the last norm, [N, H]; positions int64 [N], embeddings [N, H]."""
        rows, context = len(positions), get_forward_context()
        plan = next(plan for most, plan in self.plans if rows <= most)
        # Without metadata vLLM measures its memory; there is no cache yet.
        if not isinstance(context.attn_metadata, dict) or rows > self._most_positions:
            unpaged = [layer.attention for layer in self.layers]
            return self._library(embeddings, plan, lambda index, x: unpaged[index](positions, x))
        return self.run(plan, positions, embeddings, context)

    def run(self, plan: TalkerPlan, positions: Tensor, embeddings: Tensor, context: Any) -> Tensor:
        """As when called, by `plan`; `context` has `attn_metadata` and `slot_mapping` by layer."""
        layers, eps, pdl = self.layers, self._eps, plan.pdl

        def attend(index: int, qkv: Tensor) -> Tensor:
            return self._attend(positions, context, pdl, layers[index], qkv)

        if plan.products == "library":
            return self._library(embeddings, plan, projected(layers, attend))
        dtype = embeddings.dtype
        if plan.products == "vector":
            x = vector_layers(
                layers, embeddings, attend, eps, plan.tiles,
                qkv_dtype=dtype, residual=dtype, pdl=pdl,
            )  # fmt: skip
            return add_norm(x, None, self._norm, eps, pdl)
        x = embeddings.clone()
        delta = tiled_layers(
            layers, x, attend, eps, plan.tiles, plan.splits, plan.stages,
            qkv_dtype=dtype, pdl=pdl, tile_rows=plan.tile_rows,
        )  # fmt: skip
        return add_norm(x, delta, self._norm, eps, pdl)

    @staticmethod
    def logits(hidden: Tensor, head: Tensor) -> Tensor:
        """hidden [N, H] times head [V, H], [N, V] in its dtype, as deterministic as the layers."""
        out = hidden.new_empty(len(hidden), len(head))
        plan = DETERMINISTIC
        return tiled_linear(
            hidden, head, out, plan.tiles.output, stages=plan.stages, tile_rows=plan.tile_rows
        )

    def _library(self, embeddings: Tensor, plan: TalkerPlan, attention: Step) -> Tensor:
        x = embeddings.clone()
        delta = library_layers(self.layers, x, attention, self._eps, pdl=plan.pdl)
        return add_norm(x, delta, self._norm, self._eps, plan.pdl)

    @staticmethod
    def _attend(positions: Tensor, context: Any, pdl: bool, layer: _Layer, qkv: Tensor) -> Tensor:
        """From qkv [N, heads], overwritten in its query part, to [N, H]; writes the cache."""
        attention = layer.attention
        name = attention.attn.layer_name
        metadata, slots = context.attn_metadata[name], context.slot_mapping[name]
        keys, values = attention.attn.kv_cache.transpose(1, 2).split(_HEAD_DIM, dim=-1)
        attention_kernels.store_heads(
            qkv,
            attention.q_norm.weight,
            attention.k_norm.weight,
            attention.rotary_emb.cos_sin_cache,
            positions,
            slots,
            keys,
            values,
            attention.q_norm.variance_epsilon,
            pdl,
        )
        return attention_kernels.attend(
            qkv, keys, values, metadata.block_table, metadata.query_start_loc, positions, slots, pdl
        )
