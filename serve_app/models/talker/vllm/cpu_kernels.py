"""Stand-ins for the Triton kernels that vLLM launches per step, for machines without its backend.

On CPU vLLM runs Model Runner V2 unchanged, and the released Triton has no CPU backend; these
functions do with numpy what each kernel does, on the same arguments. Only the kernels that the
talker's path reaches are here (sampling is ours). They are looked up by their private names, so
`install` fails loudly when one of them has gone.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor


class Launchable:
    """A function with a Triton kernel's call syntax: kernel[grid](*args, CONSTANT=...)."""

    def __init__(self, function: Callable[..., None]) -> None:
        self.function = function

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*args: Any, **constants: Any) -> None:
            self.function(grid[0], *args)

        return launch


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [t.numpy() for t in tensors]


def _rows(start: np.ndarray, n: int) -> np.ndarray:
    """Lengths of n consecutive spans given their n + 1 bounds."""
    return start[1 : n + 1] - start[:n]


def prepare_prefill_inputs(
    n: int,
    input_ids,
    next_tokens,
    _stride,
    lookahead,
    idx,
    starts,
    all_ids,
    _all_stride,
    prefill,
    computed,
) -> None:
    """Copy the prompt ids of rows that still prefill into the flat input."""
    ids, nxt, idx, starts, tokens, prefill, computed = _arrays(
        input_ids, next_tokens, idx, starts, all_ids, prefill, computed
    )
    for row in range(n):
        slot = idx[row]
        done, length = computed[slot], starts[row + 1] - starts[row]
        if done >= prefill[slot]:
            continue
        ids[starts[row] : starts[row + 1]] = tokens[slot, done : done + length]
        for ahead in range(lookahead):
            position = done + length + ahead
            nxt[ahead, slot] = tokens[slot, position] if position < prefill[slot] else 0


def prepare_positions(n_plus_1: int, positions, seq_lens, idx, starts, computed, max_rows) -> None:
    """Positions of every scheduled token; sequence lengths, zero for unused rows."""
    n = n_plus_1 - 1
    positions, seq_lens, idx, starts, computed = _arrays(positions, seq_lens, idx, starts, computed)
    lengths, base = _rows(starts, n), computed[idx[:n]]
    seq_lens[:n] = base + lengths
    seq_lens[n:max_rows] = 0
    total = int(starts[n])
    positions[:total] = np.arange(total) - np.repeat(starts[:n] - base, lengths)


def combine_sampled(
    n: int, input_ids, idx, last_sampled, starts, seq_lens, prefill, _drafts, _stride, _cu, indices
) -> None:
    """Put each decoding row's last sampled id into the flat input; say where logits are wanted."""
    ids, idx, starts, seq_lens, prefill, indices = _arrays(
        input_ids, idx, starts, seq_lens, prefill, indices
    )
    last = last_sampled.view(-1).numpy()
    ends = starts[1 : n + 1] - 1
    indices[:n] = ends
    decoding = seq_lens[:n] > prefill[idx[:n]]
    ids[ends[decoding]] = last[idx[:n][decoding]]


def post_update(
    n: int, idx, computed, last_sampled, bins, _bs, sampled, _ss, num_sampled, num_rejected, starts,
    all_ids, _as, total_len,
) -> None:  # fmt: skip
    """Append the sampled ids and advance the computed lengths."""
    idx, computed, num_sampled, num_rejected, starts, tokens, total = _arrays(
        idx, computed, num_sampled, num_rejected, starts, all_ids, total_len
    )
    if bins is not None:
        raise NotImplementedError("vLLM's own penalty counts are not kept on this path")
    last, new = last_sampled.view(-1).numpy(), sampled.view(-1).numpy()
    slots, drew = idx[:n], num_sampled[:n] > 0
    owners = slots[drew]
    last[owners] = new[:n][drew]
    tokens[owners, total[owners]] = new[:n][drew]
    total[owners] += 1
    computed[slots] += _rows(starts, n) - num_rejected[:n]


def apply_write(n: int, out, _stride, indices, starts, contents, ends, _groups) -> None:
    """Scatter staged host writes into rows of a tensor."""
    flat = out.numpy().reshape(out.shape[0], -1)
    indices, starts, contents, ends = _arrays(indices, starts, contents, ends)
    begin = 0
    for i in range(n):
        count = ends[i] - begin
        flat[indices[i], starts[i] : starts[i] + count] = contents[begin : ends[i]]
        begin = ends[i]


def gather_block_tables(self, idx_mapping, num_reqs_padded, out=None, out_ptrs=None):
    """BlockTables.gather_block_tables: the batch's rows, zero rows as padding."""
    tables, rows = tuple(out or self.input_block_tables), idx_mapping.shape[0]
    for source, target in zip(self.block_tables, tables, strict=True):
        target[:rows] = source.gpu[idx_mapping]
        target[rows:num_reqs_padded] = 0
    return tuple(table[:num_reqs_padded] for table in tables)


def compute_slot_mappings(
    self, idx_mapping, query_start_loc, positions, num_tokens_padded, out=None
):
    """BlockTables.compute_slot_mappings: the KV slot of every token, -1 behind the last."""
    mappings = self.slot_mappings if out is None else out
    rows = idx_mapping.shape[0]
    starts = query_start_loc.numpy()
    total = int(starts[rows])
    owner = np.repeat(idx_mapping.numpy(), _rows(starts, rows))
    position = positions.numpy()[:total]
    for group, block_size in enumerate(self.block_sizes):
        blocks = (
            self.block_tables[group].gpu.numpy()[owner, position // block_size].astype(np.int64)
        )
        target = mappings[group].numpy()
        target[:total] = blocks * block_size + position % block_size
        target[total:] = -1
    return mappings[:, :num_tokens_padded]


def install() -> None:
    """Replace the kernels; repeatable.

    Raises:
        RuntimeError: this vLLM no longer has a kernel of that name.
    """
    import vllm.config.vllm as vllm_config
    import vllm.triton_utils as triton_utils
    from vllm.v1.worker.gpu import block_table, buffer_utils, input_batch

    # vLLM looks for kernels through all that is imported, and trips over an object of llvmlite's
    # (numba's) that makes a function of whatever attribute it is asked for, `__dict__` too.
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab["__dict__"] = {}
    if not triton_utils.HAS_TRITON:
        # The configuration refuses the runner without Triton; with the kernels replaced it needs
        # none.
        vllm_config.HAS_TRITON = True  # pyright: ignore[reportPrivateImportUsage]
        # vLLM's placeholder module lacks the two helpers that host code calls.
        triton_utils.triton.cdiv = lambda a, b: -(-a // b)
        triton_utils.triton.next_power_of_2 = lambda n: 1 << (int(n) - 1).bit_length()
    replacements: list[tuple[Any, str, Any]] = [
        (input_batch, "_prepare_prefill_inputs_kernel", Launchable(prepare_prefill_inputs)),
        (input_batch, "_prepare_pos_seq_lens_kernel", Launchable(prepare_positions)),
        (input_batch, "_combine_sampled_and_draft_tokens_kernel", Launchable(combine_sampled)),
        (input_batch, "_post_update_kernel", Launchable(post_update)),
        (buffer_utils, "_apply_write_kernel", Launchable(apply_write)),
        (block_table.BlockTables, "gather_block_tables", gather_block_tables),
        (block_table.BlockTables, "compute_slot_mappings", compute_slot_mappings),
    ]
    for owner, name, replacement in replacements:
        if not hasattr(owner, name):
            raise RuntimeError(
                f"this vLLM has no {owner.__name__}.{name}: its CPU path has changed"
            )
        setattr(owner, name, replacement)
