"""The talker's KV pool."""

from typing import Final

from serve_app.config import TalkerConfig
from serve_app.models.checkpoint.spec import TransformerSpec

# What most requests take up: 70 s of speech and its text.
TYPICAL_POSITIONS: Final = 1024
# The longer one of vLLM's defaults: 16 positions on CUDA, 128 on CPU.
_DEFAULT_BLOCK: Final = 128


def position_bytes(shape: TransformerSpec, itemsize: int) -> int:
    """Keys and values of one position, in all layers; `itemsize` is bytes per value."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * itemsize


def kv_cache_bytes(config: TalkerConfig, shape: TransformerSpec, itemsize: int) -> int:
    """The KV pool: as configured, else what `max_num_seqs` requests of typical length need.

    Longer ones take from it what they need, at the price of preemptions; one of full length always
    fits, since vLLM would not start without.
    """
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    typical = min(config.max_model_len, TYPICAL_POSITIONS)
    block = config.block_size or _DEFAULT_BLOCK
    whole = (-(-config.max_model_len // block) + 1) * block  # vLLM keeps one block to itself
    return max(config.max_num_seqs * typical, whole) * position_bytes(shape, itemsize)
