"""The input gather of the talker as one Triton kernel; `FrameEmbedding.embed` is its reference."""

# pyright: basic, reportArgumentType=false, reportGeneralTypeIssues=false
import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit
def _embed_kernel(
    out, table, ids, owner, positions, hidden, ids_slot_stride,
    NUM_IDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < hidden
    slot = tl.load(owner + token).to(tl.int64)
    position = tl.load(positions + token).to(tl.int64)
    row = ids + slot * ids_slot_stride + position * NUM_IDS
    codes = tl.zeros([BLOCK], dtype=tl.float32)
    for group in tl.static_range(1, NUM_IDS):
        index = tl.load(row + group).to(tl.int64)
        codes += tl.load(table + index * hidden + columns, mask=inside, other=0.0).to(tl.float32)
    # Rounded before the text row is added, as in the reference.
    rounded = codes.to(out.dtype.element_ty).to(tl.float32)
    text = tl.load(table + tl.load(row).to(tl.int64) * hidden + columns, mask=inside, other=0.0)
    total = rounded + text.to(tl.float32)
    tl.store(out + token * hidden + columns, total.to(out.dtype.element_ty), mask=inside)


def embed_rows(out: Tensor, table: Tensor, ids: Tensor, owner: Tensor, positions: Tensor) -> None:
    """Write the embeddings of the given positions.

    Args:
        out: [N or more, H], rows 0..N-1 are written.
        table: [rows, H] joined embedding table, the dtype of `out`.
        ids: int32 [slots, positions, 1 + Q], contiguous, rows of `table`.
        owner: int [N], the slot of each token.
        positions: int [N], its position.
    """
    tokens, hidden = len(owner), table.shape[1]
    grid = (tokens, triton.cdiv(hidden, _BLOCK))
    _embed_kernel[grid](
        out, table, ids, owner, positions, hidden, ids.stride(0), NUM_IDS=ids.shape[2], BLOCK=_BLOCK
    )


def warm_up(out: Tensor, table: Tensor, ids: Tensor) -> None:
    """Compile for these tensors, so that the first request does not wait for it."""
    owner = torch.zeros(1, dtype=torch.int32, device=out.device)
    for index_dtype in (torch.int32, torch.int64):
        embed_rows(out, table, ids, owner.to(index_dtype), owner.to(torch.int64))
