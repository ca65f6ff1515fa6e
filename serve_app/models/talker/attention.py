"""The talker's attention layer on CUDA, between vLLM's projections and over vLLM's paged cache.

vLLM schedules FlashAttention for any context up to the longest one when its graphs are captured,
which for many short streams costs several times what reading their keys does.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from vllm.forward_context import get_forward_context

from serve_app.models.talker import kernels_attention

# Steps of more positions are prefills long enough that reading keys once per query would show.
MOST_POSITIONS: Final = 512
_HEAD_DIM: Final = 128


class FusedAttention(nn.Module):
    """Stands in for a loaded `vllm...qwen3.Qwen3Attention`; shares its parameters and its cache.

    Args:
        inner: the layer; used as it is for long prefills.
    """

    qkv_proj: Any
    q_norm: Any
    k_norm: Any
    rotary_emb: Any
    attn: Any
    o_proj: Any

    def __init__(self, inner: Any) -> None:
        super().__init__()
        # Under its own names, by which vLLM finds and checks the weights.
        for name, module in inner.named_children():
            self.add_module(name, module)
        self._unfused = inner.forward
        self._head_dim: int = inner.head_dim
        self._layer_name: str = inner.attn.layer_name

    @staticmethod
    def suits(inner: Any) -> bool:
        """Whether the kernels were made for such a layer: CUDA, bfloat16, released head size."""
        weight = inner.qkv_proj.weight
        return (
            weight.is_cuda
            and weight.dtype == torch.bfloat16
            and inner.head_dim == _HEAD_DIM
            and inner.attn.kv_cache_dtype in ("auto", "bfloat16")
        )

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """[N, H] to [N, H]; see Qwen3Attention."""
        context = get_forward_context()
        metadata = context.attn_metadata
        if not isinstance(metadata, dict) or len(positions) > MOST_POSITIONS:
            return self._unfused(positions, hidden_states)
        own: Any = metadata[self._layer_name]
        slots = context.slot_mapping[self._layer_name]  # type: ignore[call-overload,index]
        qkv, _ = self.qkv_proj(hidden_states)
        keys, values = self.attn.kv_cache.transpose(1, 2).split(self._head_dim, dim=-1)
        kernels_attention.store_heads(
            qkv,
            self.q_norm.weight,
            self.k_norm.weight,
            self.rotary_emb.cos_sin_cache,
            positions,
            slots,
            keys,
            values,
            self.q_norm.variance_epsilon,
        )
        mixed = kernels_attention.attend(
            qkv, keys, values, own.block_table, own.query_start_loc, positions, slots
        )
        return self.o_proj(mixed)[0]
