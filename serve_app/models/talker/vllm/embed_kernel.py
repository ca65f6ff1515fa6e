"""The input gather of the talker as one Triton kernel; `FrameEmbedding.embed` is its reference."""

# pyright: basic, reportArgumentType=false, reportGeneralTypeIssues=false
import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 512


@triton.jit(do_not_specialize=["num_requests"])
def _embed_kernel(
    out, table, ids, slots, starts, positions, num_requests, hidden, ids_slot_stride,
    NUM_IDS: tl.constexpr, BLOCK: tl.constexpr, MOST_REQUESTS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0)
    request = tl.arange(0, MOST_REQUESTS)
    ends = tl.load(starts + 1 + request, mask=request < num_requests, other=2147483647)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < hidden
    slot = tl.load(slots + tl.sum((ends <= token).to(tl.int32))).to(tl.int64)
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


def embed_rows(
    out: Tensor, table: Tensor, ids: Tensor, slots: Tensor, starts: Tensor, positions: Tensor
) -> None:
    """Write the embeddings of the given positions.

    Args:
        out: [N or more, H], rows 0..N-1 are written.
        table: [rows, H] joined embedding table, the dtype of `out`.
        ids: int32 [slots, positions, 1 + Q], contiguous, rows of `table`.
        slots: int [requests], the slot of each request.
        starts: int32 [requests + 1], the first position of each request in the batch, and the end.
        positions: int [N], positions within their requests, request by request.
    """
    hidden, num_requests = table.shape[1], len(slots)
    grid = (len(positions), triton.cdiv(hidden, _BLOCK))
    _embed_kernel[grid](
        out, table, ids, slots, starts, positions, num_requests, hidden, ids.stride(0),
        NUM_IDS=ids.shape[2], BLOCK=_BLOCK, MOST_REQUESTS=triton.next_power_of_2(num_requests),
    )  # fmt: skip


def warm_up(out: Tensor, table: Tensor, ids: Tensor, most_requests: int) -> None:
    """Compile for these tensors, and slots and positions of vLLM's types, for any batch."""
    position = torch.zeros(1, dtype=torch.int64, device=out.device)
    requests = 1
    while True:
        slots = torch.zeros(requests, dtype=torch.int64, device=out.device)
        starts = torch.ones(requests + 1, dtype=torch.int32, device=out.device)
        embed_rows(out, table, ids, slots, starts, position)
        if requests >= most_requests:
            return
        requests *= 2
