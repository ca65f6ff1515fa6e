"""The reference's transformer stacks without what they do for serving.

Their own `forward` looks at masks and caches on the host at each call, which costs time and cannot
be recorded as a CUDA graph. Layers, norms and rotary tables are the reference's; only the loop is
here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def positions(rows: Tensor) -> Tensor:
    """0, 1, 2, ... for rows [B, L, H]: int64 [1, L]."""
    return torch.arange(rows.shape[1], device=rows.device)[None]


def window_mask(rows: Tensor, window: int) -> Tensor:
    """Which positions each may look at, itself and `window` - 1 before it: bool [1, 1, L, L]."""
    place = positions(rows)[0]
    behind = place[:, None] - place[None, :]
    return ((behind >= 0) & (behind < window))[None, None]


def encoder_stack(stack: Any, rows: Tensor, window: int) -> Tensor:
    """Run the speech encoder's transformer over [B, L, H]."""
    tables, mask = stack.rotary_emb(rows, positions(rows)), window_mask(rows, window)
    for layer in stack.layers:
        rows = layer(rows, attention_mask=mask, position_embeddings=tables)[0]
    return rows


def decoder_stack(stack: Any, rows: Tensor, window: int) -> Tensor:
    """Run the speech decoder's transformer over [B, L, latent]."""
    rows = stack.input_proj(rows)
    tables, mask = stack.rotary_emb(rows, positions(rows)), window_mask(rows, window)
    for layer in stack.layers:
        rows = layer(rows, attention_mask=mask, position_embeddings=tables)
    return stack.output_proj(stack.norm(rows))


def talker_stack(stack: Any, rows: Tensor, dropout: float = 0.0) -> Tensor:
    """Run the talker over [B, L, H], up to and with its final norm.

    dropout: of what each layer adds to its rows.
    """
    tables = stack.rotary_emb(rows, positions(rows)[None].expand(3, 1, -1))
    for layer in stack.layers:
        rows = _added(rows, layer(rows, attention_mask=None, position_embeddings=tables), dropout)
    return stack.norm(rows)


def predictor_stack(stack: Any, rows: Tensor, dropout: float = 0.0) -> Tensor:
    """Run the code predictor over [N, groups, H], up to and with its final norm."""
    tables = stack.rotary_emb(rows, positions(rows))
    for layer in stack.layers:
        rows = _added(rows, layer(rows, attention_mask=None, position_embeddings=tables), dropout)
    return stack.norm(rows)


def _added(rows: Tensor, out: tuple[Tensor, ...], dropout: float) -> Tensor:
    """What a layer makes of `rows`, with a share of its additions left out."""
    return rows + F.dropout(out[0] - rows, dropout) if dropout else out[0]
