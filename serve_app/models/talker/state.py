"""Model-runner hooks of the talker: integer rows in, sampled frames out.

Per running request one slot of a table of positions lives on the device. Prompt positions are
written when the request arrives, generated ones by the sampler, so that prefill, decode, chunked
prefill and recompute after preemption all
build their inputs by the same gather, without host synchronisation and without per-request Python.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.v1.core.sched.output import NewRequestData
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.states import RequestState

from serve_app.models.code_predictor import FrameBatch
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.first_audio import FirstAudio, FirstAudioDecoder
from serve_app.models.frame_channel import FrameClient, InProcessFrames
from serve_app.models.sampling import apply_repetition_penalty, sample, uniform
from serve_app.models.spec import TalkerSpec
from serve_app.models.talker.model import TalkerForVllm
from serve_app.types import Prompt

PROMPT_KEY = "tts_prompt"
RUNTIME_KEY = "tts_runtime"

# A preempted request comes back as a new one; its codes wait here. Finished requests pass through
# as well (the hook does not tell them apart), so the store is bounded; preempted requests are few
# and come back soon.
_MAX_SUSPENDED = 1024


@dataclass(frozen=True, slots=True)
class TalkerPrompt:
    """What travels in `SamplingParams.extra_args`.

    done: int64 [T, Q], the frames made before.
    decoder_slot: where the speech decoder of this process expects the stream; None if it does not.
    """

    prompt: Prompt
    done: np.ndarray
    decoder_slot: int | None = None


class StepFrames:
    """The frames of one engine step, from the launch until the engine's owner hands them out.

    Rides vLLM's asynchronous output copy: codes go to the host on its copy stream. vLLM asks its
    log-probability tensors for two things, `to_cpu_nonblocking` when the copy stream is active and
    `tolists` once the copies have arrived; nothing else of them is looked at.

    Args:
        request_ids: one per row.
        codes: int64 [B, Q], on the device.
        audio: first frames of the step that are being decoded.
    """

    def __init__(self, request_ids: list[str], codes: Tensor, audio: FirstAudio | None) -> None:
        self.request_ids = request_ids
        self.audio = audio
        self._device_codes = codes  # kept alive: the copy runs on another stream
        self._host_codes: Tensor | None = None
        # Of the step on the device, and of the copy; on CPU nothing is ever under way.
        self.done = _record(codes.device)
        self.copied: torch.cuda.Event | None = None

    @property
    def codes(self) -> np.ndarray:
        """int64 [B, Q], on the host, once vLLM has the step's output."""
        assert self._host_codes is not None
        return self._host_codes.numpy()

    def to_cpu_nonblocking(self) -> "StepFrames":
        self._host_codes = self._device_codes.to("cpu", non_blocking=True)
        self.copied = _record(self._device_codes.device)
        return self

    def tolists(self) -> None:
        return


def _record(device: torch.device) -> torch.cuda.Event | None:
    """An event on the current stream, waited for by spinning; None on CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


@dataclass(frozen=True, slots=True)
class TalkerRuntime:
    """What the engine's owner gives to the state.

    on_step: told of each launched step.
    on_restore: told that a preempted request came back.
    is_wanted: whether somebody still consumes a request; called with the lock of `first_audio`.
    """

    spec: TalkerSpec
    predictor: FrameClient
    on_step: Callable[[StepFrames], None]
    on_restore: Callable[[], None]
    is_wanted: Callable[[str], bool]
    first_audio: FirstAudioDecoder | None = None


# vLLM builds the state itself and its config carries plain values only; owner and state share a
# process.
RUNTIMES: dict[str, TalkerRuntime] = {}


class SlotTable:
    """Device-side state of the running requests, one row per slot; the last row takes unwanted
    writes.

    ids: int32 [slots + 1, positions, 1 + Q], rows of the joined embedding table.
    seen: bool [slots + 1, V], the group-0 codes made so far (repetition penalty).
    floats: float32 [slots + 1, 5]: temperature, top_p, repetition penalty, subtalker temperature,
    subtalker top_p.
    ints: int64 [slots + 1, 5]: seed, prompt length, minimum frames, top_k, subtalker top_k.
    """

    def __init__(
        self, slots: int, positions: int, spec: TalkerSpec, zero_row: int, device: torch.device
    ):
        self.trash = slots
        self.device = device
        self.ids = torch.full(
            (slots + 1, positions, 1 + spec.num_code_groups),
            zero_row,
            dtype=torch.int32,
            device=device,
        )
        self.seen = torch.zeros(slots + 1, spec.vocab_size, dtype=torch.bool, device=device)
        self.true = torch.ones((), dtype=torch.bool, device=device)
        self.floats = torch.ones(slots + 1, 5, dtype=torch.float32, device=device)
        self.ints = torch.zeros(slots + 1, 5, dtype=torch.int64, device=device)

    def upload(self, values: np.ndarray) -> Tensor:
        """Copy to the device without waiting for it."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)


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
        self.suspended: OrderedDict[str, Tensor] = OrderedDict()
        # Where the first frame of a slot is to be decoded; -1: nowhere, or done.
        self.decoder_slot = np.full(self.max_num_reqs + 1, -1, dtype=np.int64)
        self.embed_rows: Callable[..., None] | None = None
        if device.type == "cuda":
            from serve_app.models.talker import kernels

            kernels.warm_up(self.inputs, self.embedding.weight, self.table.ids, self.max_num_reqs)
            self.embed_rows = kernels.embed_rows
        # Set by benchmarks: a CUDA event before the inputs, after the forward pass, and after the
        # frame.
        self.marks: list[torch.cuda.Event] | None = None

    def mark(self) -> None:
        marks = self.marks
        if marks is not None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append(event)

    # Requests

    def add_request(self, req_index: int, new_req_data: NewRequestData) -> None:
        extra = new_req_data.sampling_params.extra_args if new_req_data.sampling_params else None
        work: TalkerPrompt | None = (extra or {}).get(PROMPT_KEY)
        if work is None:  # vLLM's own warm-up requests
            self.table.ids[req_index] = self.embedding.zero_row
            return
        prompt, done = work.prompt, work.done
        length = len(prompt.rows)
        self.slot_of[new_req_data.req_id] = req_index
        self.prompt_len[req_index] = length
        self._write(req_index, prompt, done)
        # After a preemption the ids sampled so far count as prefill, too.
        made = len(new_req_data.prefill_token_ids or ()) - new_req_data.prompt_len
        frames = len(done) + made
        saved = self.suspended.pop(new_req_data.req_id, None)
        if made > 0:
            if saved is None or len(saved) < frames:
                raise RuntimeError(f"codes of preempted request {new_req_data.req_id} are gone")
            self.table.ids[req_index, length : length + frames, 1:] = saved[:frames]
            self.runtime.on_restore()
        slot = work.decoder_slot
        self.decoder_slot[req_index] = -1 if slot is None or frames else slot
        # Rows beyond what is computed so far count as well: a request may be preempted while it
        # refills.
        self.end[req_index] = length + frames - 1
        self._write_history(req_index, length, frames)

    def _write(self, slot: int, prompt: Prompt, done: np.ndarray) -> None:
        """Fill a slot: parameters, prompt rows, done frames, and the text of every frame to come.

        In one upload, since the first audio waits for it.
        """
        length, trailing = len(prompt.rows), prompt.trailing_text
        known = np.full(
            (length + max(len(trailing), len(done)), len(self.offsets)), -1, dtype=np.int32
        )
        known[:length] = prompt.rows
        known[length:, 0] = prompt.pad_text_id
        known[length : length + len(trailing), 0] = trailing
        known[length : length + len(done), 1:] = done
        ids = np.where(known >= 0, known + self.offsets, self.embedding.zero_row)
        talker, subtalker = prompt.talker, prompt.subtalker
        ints = np.array(
            [prompt.seed, length, prompt.min_new_tokens, talker.top_k, subtalker.top_k], np.int64
        )
        floats = np.array(
            [
                talker.temperature,
                talker.top_p,
                talker.repetition_penalty,
                subtalker.temperature,
                subtalker.top_p,
            ],
            np.float32,
        )
        parts = (ints.view(np.int32), floats.view(np.int32), ids.astype(np.int32).ravel())
        whole = self.table.upload(np.concatenate(parts))
        at_ids = 3 * len(ints)
        self.table.ints[slot] = whole[: 2 * len(ints)].view(torch.int64)
        self.table.floats[slot] = whole[2 * len(ints) : at_ids].view(torch.float32)
        self.table.ids[slot, : len(ids)] = whole[at_ids:].view(ids.shape)
        self.table.ids[slot, len(ids) :, 0] = prompt.pad_text_id + int(self.offsets[0])

    def _write_history(self, slot: int, start: int, frames: int) -> None:
        """Mark the group-0 codes of frames made so far as seen."""
        self.table.seen[slot] = False
        if not frames:  # the usual case, and first audio waits for these launches
            return
        codes = self.table.ids[slot, start : start + frames, 1].long() - int(self.offsets[1])
        self.table.seen[slot].index_fill_(0, codes, True)

    def remove_request(self, req_id: str) -> None:
        """Keep the codes: finished and preempted requests both come here, and some come back."""
        slot = self.slot_of.pop(req_id, None)
        if slot is None:
            return
        # The row at `end` is the last one written: the position computed last sampled the row that
        # follows it.
        made = self.table.ids[slot, self.prompt_len[slot] : self.end[slot] + 1, 1:]
        self.suspended[req_id] = made.clone()
        if len(self.suspended) > _MAX_SUSPENDED:
            self.suspended.popitem(last=False)

    # Inputs

    def prepare_attn(
        self,
        input_batch: InputBatch,
        cudagraph_mode: CUDAGraphMode,
        *args: Any,
        for_capture: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        if cudagraph_mode == CUDAGraphMode.FULL and not for_capture and self.talker.is_fused:
            # A graph of our attention reads vLLM's persistent buffers only; what FlashAttention
            # would be told besides costs a part of every step.
            return {}
        return super().prepare_attn(
            input_batch, cudagraph_mode, *args, for_capture=for_capture, **kwargs
        )

    def prepare_inputs(self, input_batch: InputBatch, req_states: RequestState) -> dict[str, Any]:
        padded = input_batch.num_tokens_after_padding
        if input_batch.req_ids[0] in self.slot_of:
            self.mark()
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


class TalkerSampler:
    """Samples code 0, has the code predictor fill the frame, and writes the next input row."""

    def __init__(self, state: TalkerState, req_states: RequestState) -> None:
        self.state = state
        self.req_states = req_states
        # The runner counts sampled ids for vLLM's own penalties; ours are in SlotTable.seen.
        self.penalties_state = SimpleNamespace(output_bin_counts=None)
        self.compute_nans = False
        spec = state.spec
        forbidden = torch.zeros(spec.vocab_size, dtype=torch.bool, device=state.device)
        # The upper 1024 ids are control ids (model spec 3.4, step 3).
        forbidden[spec.vocab_size - 1024 :] = True
        forbidden[spec.codec_eos_id] = False
        self.forbidden = forbidden
        self.is_eos = torch.arange(spec.vocab_size, device=state.device) == spec.codec_eos_id
        self.sample_row: Callable[..., None] | None = None
        if state.device.type == "cuda":
            from serve_app.models.kernels_predictor import sample_row

            self.sample_row = sample_row
        self.graphs = self._capture()

    def add_request(self, req_idx: int, sampling_params: Any) -> None:
        """Parameters arrive with the prompt (TalkerState.add_request)."""

    def apply_staged_writes(self) -> None: ...

    def __call__(self, logits: Tensor, input_batch: InputBatch) -> SamplerOutput:
        state, rows = self.state, logits.shape[0]
        slots = input_batch.idx_mapping[:rows].long()
        position = input_batch.positions[input_batch.logits_indices] + 1
        # A row that is still prefilling samples nothing; vLLM reads num_sampled.
        valid = input_batch.seq_lens[:rows] >= self.req_states.prefill_len.gpu[slots]
        if input_batch.req_ids[0] in state.slot_of:
            assert state.talker.sample_hidden is not None
            state.mark()
            codes = self.frames(logits, state.talker.sample_hidden, slots, position, valid)
            state.mark()
            code_0 = codes[:, 0]
            out = StepFrames(
                list(input_batch.req_ids), codes, self._decode_first(codes, input_batch)
            )
            state.runtime.on_step(out)
        else:  # profiling and warm-up: nobody waits for these frames
            code_0, out = logits.argmax(-1), None
        num_sampled = valid.to(torch.int32)
        return SamplerOutput(
            sampled_token_ids=code_0.view(-1, 1),
            logprobs_tensors=out,  # type: ignore[arg-type]
            num_nans=None,
            num_sampled=num_sampled,
            num_rejected=torch.zeros_like(num_sampled),
        )

    def _decode_first(self, codes: Tensor, batch: InputBatch) -> FirstAudio | None:
        """Launch the decoding of first frames, before the host knows what they are."""
        state, decoder = self.state, self.state.runtime.first_audio
        if decoder is None:
            return None
        slots = batch.idx_mapping_np[: batch.num_reqs]
        targets = state.decoder_slot[slots]
        rows = np.flatnonzero((targets >= 0) & (state.computed[slots] >= state.prompt_len[slots]))
        if not len(rows):
            return None
        state.decoder_slot[slots[rows]] = -1
        with decoder.lock:
            wanted = [row for row in rows if state.runtime.is_wanted(batch.req_ids[row])]
            wanted = wanted[: decoder.max_rows]
            return decoder.launch(targets[wanted].tolist(), codes, wanted) if wanted else None

    def frames(
        self, logits: Tensor, hidden: Tensor, slots: Tensor, position: Tensor, valid: Tensor
    ) -> Tensor:
        """The frame of every row: int64 [B, Q]; its own tensor, as the next step may not wait for
        readers.
        """
        if self.graphs is not None:
            return self.graphs(logits, hidden, slots, position, valid).clone()
        return self._frames(
            self.state.runtime.predictor.predict, logits, hidden, slots, position, valid
        )

    def _capture(self) -> BatchGraphs | None:
        """One graph per batch size from logits to the stored frame, where the predictor is in this
        process.
        """
        state, predictor = self.state, self.state.runtime.predictor
        if state.device.type != "cuda" or not isinstance(predictor, InProcessFrames):
            return None
        spec, dtype = state.spec, state.dtype

        def inputs(rows: int) -> tuple[Tensor, ...]:
            def zeros(*shape: int, of: torch.dtype) -> Tensor:
                return torch.zeros(*shape, dtype=of, device=state.device)

            return (
                zeros(rows, spec.vocab_size, of=dtype),
                zeros(rows, spec.transformer.hidden_size, of=dtype),
                torch.full((rows,), state.table.trash, dtype=torch.int64, device=state.device),
                zeros(rows, of=torch.int64),
                zeros(rows, of=torch.bool),
            )

        frames = partial(self._frames, predictor.predict_eager)
        sizes = [n for n in predictor.batch_sizes if n < state.max_num_reqs]
        graphs = BatchGraphs(inputs, frames, [*sizes, state.max_num_reqs])
        with torch.cuda.stream(torch.cuda.Stream(state.device)):
            graphs.capture_all()
            torch.cuda.current_stream().synchronize()
        return graphs

    def _frames(
        self,
        predict: Callable[[FrameBatch], Tensor],
        logits: Tensor,
        hidden: Tensor,
        slots: Tensor,
        position: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Sample code 0, fill the frame, store it as the row at `position`; capturable if `predict`
        is.
        """
        table = self.state.table
        floats, ints = table.floats[slots], table.ints[slots]
        seed, frame = ints[:, 0], position - ints[:, 1]
        code_0 = self.sample_code_0(logits, slots, floats, ints, frame)
        rest = predict(
            FrameBatch(
                hidden,
                code_0,
                seed.contiguous(),
                frame,
                floats[:, 3].contiguous(),
                ints[:, 4].contiguous(),
                floats[:, 4].contiguous(),
            )
        )
        codes = torch.cat((code_0[:, None], rest), dim=1)
        # Only finished prefills own their next row: others would overwrite restored history.
        target = torch.where(valid, slots, torch.full_like(slots, table.trash))
        table.ids[target, position, 1:] = codes.to(torch.int32) + self.state.code_offsets
        # A device tensor: assigning a Python scalar through index tensors would wait for a copy.
        table.seen.index_put_((target, code_0), table.true)
        return codes

    def sample_code_0(
        self, logits: Tensor, slots: Tensor, floats: Tensor, ints: Tensor, frame: Tensor
    ) -> Tensor:
        """Reference order: repetition penalty, minimum length, suppression, temperature, top-k,
        top-p.
        """
        scores = apply_repetition_penalty(
            logits.float(), self.state.table.seen[slots], floats[:, 2]
        )
        too_early = (frame < ints[:, 2])[:, None] & self.is_eos
        scores = scores.masked_fill(self.forbidden | too_early, float("-inf"))
        if self.sample_row is None:
            u = uniform(ints[:, 0], frame, 0)
            return sample(scores, floats[:, 0], ints[:, 3], floats[:, 1], u)
        codes = torch.empty(len(slots), 1, dtype=torch.int64, device=scores.device)
        columns = (ints[:, 0], frame, floats[:, 0], ints[:, 3], floats[:, 1])
        self.sample_row(scores, *(c.contiguous() for c in columns), 0, 0, codes)
        return codes[:, 0]
