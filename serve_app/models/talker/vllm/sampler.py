"""The talker's sampler: code 0, the rest of the frame, and the row that the next step reads."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.states import RequestState

from serve_app.models.code_predictor.channel.contract import CapturableFrames, FrameBatch
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.sampling import apply_repetition_penalty, sample, uniform
from serve_app.models.speech_decoder.first_audio import FirstAudio
from serve_app.models.start_times import start_times
from serve_app.models.talker.runtime import StepFrames

if TYPE_CHECKING:
    from serve_app.models.talker.vllm.state import TalkerState


class TalkerSampler:
    """Samples code 0, has the code predictor fill the frame, and writes the next input row."""

    def __init__(self, state: "TalkerState", req_states: RequestState) -> None:
        self.state = state
        self.req_states = req_states
        # The runner counts sampled ids for vLLM's own penalties; ours are in SlotTable.seen.
        self.penalties_state = SimpleNamespace(output_bin_counts=None)
        self.compute_nans = False
        spec = state.spec
        forbidden = torch.zeros(spec.vocab_size, dtype=torch.bool, device=state.device)
        forbidden[spec.num_codes :] = True
        forbidden[spec.codec_eos_id] = False
        self.forbidden = forbidden
        self.is_eos = torch.arange(spec.vocab_size, device=state.device) == spec.codec_eos_id
        self.sample_row: Callable[..., None] | None = None
        if state.device.type == "cuda":
            from serve_app.models.sampling_kernel import sample_row

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
            # Left there by `TalkerForVllm.compute_logits`, which the runner calls right before.
            hidden = state.talker.sample_hidden
            assert hidden is not None
            state.mark("logits")
            codes = self.sample_frames(logits, hidden, slots, position, valid)
            state.mark("frame")
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

    def sample_frames(
        self, logits: Tensor, hidden: Tensor, slots: Tensor, position: Tensor, valid: Tensor
    ) -> Tensor:
        """The frame of every row: int64 [B, Q]; its own tensor, since readers may come late."""
        if self.graphs is not None:
            return self.graphs(logits, hidden, slots, position, valid).clone()
        return self._sample_frames(
            self.state.runtime.predictor.predict, logits, hidden, slots, position, valid
        )

    def _capture(self) -> BatchGraphs | None:
        """One graph per batch size, from logits to the stored frame, if the predictor is here."""
        state, predictor = self.state, self.state.runtime.predictor
        if state.device.type != "cuda" or not isinstance(predictor, CapturableFrames):
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

        frames = partial(self._sample_frames, predictor.predict_eager)
        sizes = [n for n in predictor.batch_sizes if n < state.max_num_reqs]
        graphs = BatchGraphs(inputs, frames, [*sizes, state.max_num_reqs])
        start_times.lap("talker weights")
        with torch.cuda.stream(torch.cuda.Stream(state.device)):
            graphs.capture_all()
            torch.cuda.current_stream().synchronize()
        start_times.lap("frame graphs")
        return graphs

    def _sample_frames(
        self,
        predict: Callable[[FrameBatch], Tensor],
        logits: Tensor,
        hidden: Tensor,
        slots: Tensor,
        position: Tensor,
        valid: Tensor,
    ) -> Tensor:
        """Sample code 0, fill the frame and store it as the row at `position`.

        Capturable if `predict` is.
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
        """Draw code 0 [B] in the reference's order.

        That is: repetition penalty, minimum length, suppression, temperature, top-k, top-p.
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
