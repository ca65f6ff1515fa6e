"""Model-runner hooks of the talker: integer rows in, sampled frames out.

Per running request one slot of a table of positions lives on the device. Prompt positions are
written when the request arrives, generated ones by the sampler, so that prefill, decode, chunked
prefill and recompute after preemption all build their inputs by the same gather, without host
synchronisation and without per-request Python.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.states import RequestState

from serve_app.models.talker.arrivals import Arrival, write_arrivals
from serve_app.models.talker.runtime import PROMPT_KEY, RUNTIME_KEY, RUNTIMES, TalkerPrompt
from serve_app.models.talker.slots import SlotTable
from serve_app.models.talker.vllm.model import TalkerForVllm
from serve_app.models.talker.vllm.sampler import TalkerSampler
from serve_app.models.talker.vllm.transformer import MOST_POSITIONS

# Before the inputs, behind the forward pass, behind the frame.
StepMark = Literal["inputs", "logits", "frame"]


class TalkerState(DefaultModelState):
    """vLLM's per-model state hooks (Model Runner V2)."""

    supports_prompt_embeds = False

    def __init__(
        self,
        vllm_config: VllmConfig,
        model: TalkerForVllm,
        encoder_cache: Any,
        device: torch.device,
    ) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        additional: Any = vllm_config.additional_config
        runtime = RUNTIMES[additional[RUNTIME_KEY]]
        self.runtime = runtime
        self.spec = runtime.spec
        self.talker = model
        assert model.frame_embedding is not None, "weights are loaded before the state is built"
        self.embedding = model.frame_embedding
        self.offsets = np.array(self.embedding.offsets, dtype=np.int32)
        self.code_offsets = torch.from_numpy(self.offsets[1:]).to(device)
        self.table = SlotTable(
            self.max_num_reqs, self.max_model_len + 1, self.spec, self.embedding.zero_row, device
        )
        self.inputs = torch.zeros(
            self.max_num_tokens, self.inputs_embeds_size, dtype=self.dtype, device=device
        )
        self.slot_of: dict[str, int] = {}
        self.prompt_len = np.zeros(self.max_num_reqs + 1, dtype=np.int64)
        self.end = np.zeros(self.max_num_reqs + 1, dtype=np.int64)
        self.computed = np.zeros(self.max_num_reqs + 1, dtype=np.int64)
        # New requests of the step that is being prepared, which are written together.
        self.arrivals: list[Arrival] = []
        # The codes of preempted requests, which come back as new ones.
        self.suspended: dict[str, Tensor] = {}
        # Where the first frame of a slot is to be decoded; -1: nowhere, or done.
        self.decoder_slot = np.full(self.max_num_reqs + 1, -1, dtype=np.int64)
        self.embed_rows: Callable[..., None] | None = None
        if device.type == "cuda":
            from serve_app.models.talker.vllm import embed_kernel

            embed_kernel.warm_up(
                self.inputs, self.embedding.weight, self.table.ids, self.max_num_reqs
            )
            self.embed_rows = embed_kernel.embed_rows
        # Set by benchmarks, between any two marks: the places that steps pass, and CUDA events.
        self.marks: list[tuple[StepMark, torch.cuda.Event]] | None = None

    def mark(self, place: StepMark) -> None:
        marks = self.marks
        if marks is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append((place, event))

    # Requests

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        extra = new_req_data.sampling_params.extra_args if new_req_data.sampling_params else None
        work: TalkerPrompt | None = (extra or {}).get(PROMPT_KEY)
        if work is None:  # vLLM's own warm-up requests
            self.table.ids[req_index] = self.embedding.zero_row
            return
        # vLLM is in the midst of a step of many: whatever is wrong with this one, it has a slot.
        self.slot_of[new_req_data.req_id] = req_index
        self.runtime.on_begin(new_req_data.req_id)
        try:
            self._set_up(req_index, new_req_data, work)
        except Exception as error:
            self.table.clear(req_index, self.embedding.zero_row)
            self.runtime.on_refusal(new_req_data.req_id, error)

    def _set_up(self, req_index: int, new_req_data: NewRequestData, work: TalkerPrompt) -> None:
        prompt, done = work.prompt, work.done
        length = len(prompt.rows)
        self.prompt_len[req_index] = length
        # Rows beyond what is computed so far count as well: a request may be preempted while it
        # refills.
        self.end[req_index] = len(new_req_data.prefill_token_ids or ()) - 1
        self.decoder_slot[req_index] = -1
        # After a preemption the ids sampled so far count as prefill, too.
        made = len(new_req_data.prefill_token_ids or ()) - new_req_data.prompt_len
        frames = len(done) + made
        saved = self.suspended.pop(new_req_data.req_id, None)
        self.runtime.preempted.discard(new_req_data.req_id)
        if made > 0:
            if saved is None or len(saved) < frames:
                raise RuntimeError(f"codes of preempted request {new_req_data.req_id} are gone")
            saved = saved[:frames]
            self.runtime.on_restore()
        restored = saved if made > 0 else None
        arrival = Arrival.of(
            req_index, prompt, done, frames, restored, self.embedding, self.offsets
        )
        if len(arrival.rows) > self.table.ids.shape[1]:
            raise ValueError(f"{len(arrival.rows)} rows, there is room for {self.max_model_len}")
        self.arrivals.append(arrival)
        if work.decoder_slot is not None and not frames:
            self.decoder_slot[req_index] = work.decoder_slot

    def apply_staged_writes(self) -> None:
        """Called by the runner behind the last new request of a step."""
        super().apply_staged_writes()
        if self.arrivals:
            write_arrivals(self.arrivals, self.table, self.embedding, int(self.offsets[0]))
            self.arrivals.clear()

    def remove_request(self, req_id: str) -> None:
        """Forget a request that has ended; keep the codes of one that is preempted."""
        slot = self.slot_of.pop(req_id, None)
        if req_id not in self.runtime.preempted:
            self.suspended.pop(req_id, None)
        elif slot is not None:  # else it comes back, which begins with its removal
            # The row at `end` is the last one written: the position computed last sampled the row
            # that follows it.
            made = self.table.ids[slot, self.prompt_len[slot] : self.end[slot] + 1, 1:]
            self.suspended[req_id] = made.clone()

    # Inputs

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        *args: Any,
        for_capture: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        fits = input_batch.num_tokens_after_padding <= MOST_POSITIONS
        ours = self.talker.own_layers is not None and fits
        if ours and cudagraph_mode == CUDAGraphMode.FULL and not for_capture:
            # A graph of our attention reads vLLM's persistent buffers only; what FlashAttention
            # would be told besides costs a part of every step.
            return {}
        return super().prepare_attn(
            input_batch, cudagraph_mode, *args, for_capture=for_capture, **kwargs
        )

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        padded = input_batch.num_tokens_after_padding
        if input_batch.req_ids[0] in self.slot_of:
            self.mark("inputs")
            self._fill(input_batch)
        return {"inputs_embeds": self.inputs[:padded]}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        return {"inputs_embeds": self.inputs[:num_tokens]}

    def _fill(self, batch: InputBatch) -> None:
        tokens, rows = batch.num_tokens, batch.num_reqs
        slots = batch.idx_mapping_np[:rows]
        computed = batch.num_computed_tokens_np[:rows] + batch.num_scheduled_tokens[:rows]
        self.computed[slots] = computed
        self.end[slots] = np.maximum(self.end[slots], computed)
        owner, positions = batch.idx_mapping[:rows], batch.positions[:tokens]
        starts = batch.query_start_loc[: rows + 1]
        if self.embed_rows is not None:
            self.embed_rows(
                self.inputs, self.embedding.weight, self.table.ids, owner, starts, positions
            )
            return
        index = torch.arange(tokens, device=self.device, dtype=starts.dtype)
        row = torch.searchsorted(starts[1:], index, right=True)
        self.inputs[:tokens] = self.embedding.embed(self.table.ids[owner[row].long(), positions])

    # Sampling

    def custom_sampler(self, sampler: Any) -> tuple[Any, Any]:
        return TalkerSampler(self, sampler.req_states), None
