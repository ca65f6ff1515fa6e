"""Drawing codes from logits, with random numbers that depend on (seed, frame, group) and nothing
else.

One uniform number per drawn code, from a counter-based hash, and the inverse of the cumulative
distribution in vocabulary order: a code does not depend on the batch it was drawn in, on its row,
or on how often the stream was interrupted. Everything is tensor code without host synchronisation,
so it can be captured in a CUDA graph.
"""

import torch
from torch import Tensor

# Odd constants of the splitmix64 finaliser (Steele, Lea and Flood, 2014), as signed 64-bit
# integers.
_GAMMA = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(seed: Tensor, frame: Tensor, group: int) -> Tensor:
    """Uniform numbers in (0, 1) for one code group.

    Args:
        seed: int64 [B].
        frame: int64 [B].
        group: code group of the draw.

    Returns:
        float32 [B]; the same (seed, frame, group) always gives the same number, on every device.
    """
    x = _mix(_mix(_mix(seed + _GAMMA) + frame) * _GAMMA + group)
    return ((_shift_right(x, 41)).to(torch.float32) + 0.5) * 2.0**-23


def apply_repetition_penalty(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive and multiply negative logits of ids seen so far (once per id).

    Args:
        logits: float32 [B, V].
        seen: bool [B, V].
        penalty: float32 [B].
    """
    factor = penalty[:, None]
    return torch.where(seen, torch.where(logits > 0, logits / factor, logits * factor), logits)


def sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, u: Tensor) -> Tensor:
    """Draw one code per row: temperature, then top-k, then top-p, then the inverse CDF at `u`.

    Args:
        logits: float32 [B, V]; -inf marks forbidden codes.
        temperature: float32 [B]; 0 = greedy (the first of equal maxima).
        top_k: int64 [B]; 0 = off. Codes equal to the k-th best stay in, as in the reference.
        top_p: float32 [B]; 1 = off.
        u: float32 [B] in (0, 1).

    Returns:
        int64 [B].
    """
    vocab = logits.shape[-1]
    greedy = logits.argmax(-1)
    scaled = (
        logits / torch.where(temperature > 0, temperature, torch.ones_like(temperature))[:, None]
    )
    ordered = scaled.sort(dim=-1, descending=True).values
    k = torch.where(top_k > 0, top_k, torch.full_like(top_k, vocab)).clamp(max=vocab)
    kth = ordered.gather(-1, (k - 1)[:, None])
    probabilities = torch.softmax(ordered.masked_fill(ordered < kth, float("-inf")), dim=-1)
    # A code stays if the mass strictly above it is below top_p; the best code always stays.
    above = probabilities.cumsum(-1) - probabilities
    kept = (above < top_p[:, None]) & (probabilities > 0)
    kept[:, 0] = True
    threshold = ordered.masked_fill(~kept, float("inf")).amin(-1, keepdim=True)
    weights = torch.exp(scaled - ordered[:, :1]).masked_fill(scaled < threshold, 0.0)
    cumulative = weights.cumsum(-1)
    target = u[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= target).sum(-1)
    # Rounding may push the target to the very end: fall back to the last code that has any weight.
    last = vocab - 1 - (weights > 0).flip(-1).to(torch.uint8).argmax(-1)
    return torch.where(temperature > 0, torch.minimum(drawn, last), greedy)
