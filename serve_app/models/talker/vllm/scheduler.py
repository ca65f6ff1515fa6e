"""vLLM's scheduler with a short way for requests that only go on: one more frame each.

vLLM asks of every running request in every step what most of them never have: drafts, encoder
inputs, connectors, grammars, cached prefixes. With 256 streams that takes a third of what a step
takes on the device (docs/decisions/0009-host-time-per-step.md). Here a request that goes on is
counted forward in one loop, before and after the step; whatever else happens to a request, its
arrival, its preemption and its end included, is vLLM's own code.
"""

import copy
from typing import Any, Final

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from serve_app.models.talker.runtime import RUNTIME_KEY, RUNTIMES

# All requests are one client's: the engine that steps the core.
_CLIENT: Final = 0


class FrameScheduler(AsyncScheduler):
    """Schedules exactly what `AsyncScheduler` schedules.

    Expects what `VllmTalker` configures: one group of full attention, no prefix caching, drafts,
    connectors, LoRA or parallel ranks; requests that sample one id per step, without
    log-probabilities, grammars or repetition detection.

    Raises:
        ValueError: the configuration is another.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        groups = self.kv_cache_config.kv_cache_groups
        others = (
            self.num_spec_tokens,
            self.connector,
            self.ec_connector,
            self.aux_output_connector,
            self.lora_config,
            self.kv_cache_manager.enable_caching,
            self.use_pp,
            len(groups) != 1,
            not isinstance(groups[0].kv_cache_spec, FullAttentionSpec),
        )
        if any(others):
            raise ValueError("this scheduler is for the talker's configuration only")
        self._tokens_per_block = groups[0].kv_cache_spec.block_size
        additional: Any = self.vllm_config.additional_config
        self._preempted = RUNTIMES[additional[RUNTIME_KEY]].preempted

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        going_on = self._going_on()
        if going_on is None:
            return super().schedule(throttle_prefills)
        cached = self._count_forward(going_on)
        budget = self.max_num_scheduled_tokens
        self.max_num_scheduled_tokens = budget - len(going_on)
        try:
            # These have had their turn in this step, so vLLM passes over them.
            output = super().schedule(throttle_prefills)
        finally:
            self.max_num_scheduled_tokens = budget
        output.num_scheduled_tokens = {
            **dict.fromkeys(cached.req_ids, 1),
            **output.num_scheduled_tokens,
        }
        output.total_num_scheduled_tokens += len(going_on)
        output.scheduled_cached_reqs = cached
        return output

    def _going_on(self) -> list[Request] | None:
        """The running requests that get their next frame; None if vLLM has to see to them all.

        That is when one of them still prefills, or when memory for them has to be taken from
        others.
        """
        if self._inflight_prefills or self._pause_state != PauseState.UNPAUSED:
            return None
        going_on: list[Request] = []
        blocks, last = 0, self.max_model_len - 1
        for request in self.running:
            computed, ahead = request.num_computed_tokens, request.num_output_placeholders
            if len(request._all_token_ids) + ahead != computed + 1:
                return None
            if ahead and computed + 2 - ahead >= request.num_prompt_tokens + request.max_tokens:
                continue  # its last frame is on the device
            if computed >= last:
                continue
            going_on.append(request)
            blocks += computed % self._tokens_per_block == 0
        if len(going_on) > self.max_num_scheduled_tokens:
            return None
        if blocks > self.kv_cache_manager.block_pool.get_num_free_blocks():
            return None
        return going_on

    def _count_forward(self, going_on: list[Request]) -> CachedRequestData:
        """Give each its next position, and a block where that is the first of one."""
        next_step = self.current_step + 2
        data = CachedRequestData.make_empty()
        for request in going_on:
            computed = request.num_computed_tokens
            blocks = None
            if computed % self._tokens_per_block == 0:
                new = self.kv_cache_manager.allocate_slots(request, 1)
                assert new is not None, "the free blocks were counted"
                blocks = new.get_block_ids(allow_none=True)
            data.req_ids.append(request.request_id)
            data.new_block_ids.append(blocks)
            data.num_computed_tokens.append(computed)
            data.num_output_tokens.append(computed + 1 - request.num_prompt_tokens)
            request.num_computed_tokens = computed + 1
            request.num_in_flight_tokens += 1
            request.num_output_placeholders += 1
            request.next_decode_eligible_step = next_step
        return data

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        sampled, rows = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        going_on: list[EngineCoreOutput] = []
        others: dict[str, int] = {}
        requests, longest = self.requests, self.max_model_len
        for request_id, tokens in scheduler_output.num_scheduled_tokens.items():
            request = requests.get(request_id)
            if request is None or not _goes_on(request, ids := sampled[rows[request_id]], longest):
                others[request_id] = tokens
                continue
            request.num_in_flight_tokens -= tokens
            request.num_output_placeholders -= 1
            # What `append_output_token_ids` does; without prefix caching there are no hashes.
            request._output_token_ids.append(ids[0])
            request._all_token_ids.append(ids[0])
            going_on.append(EngineCoreOutput(request_id, ids))
        rest = copy.copy(scheduler_output)
        rest.num_scheduled_tokens = others
        outputs = super().update_from_output(rest, model_runner_output)
        if going_on:
            ours = outputs.setdefault(_CLIENT, EngineCoreOutputs())
            ours.outputs = going_on + ours.outputs
        return outputs

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._preempted.add(request.request_id)
        super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._preempted.discard(request.request_id)
        return super()._free_request(request, *args, **kwargs)


def _goes_on(request: Request, ids: list[int], longest: int) -> bool:
    """Whether a sampled id means nothing but one more frame to come.

    Args:
        request: that it was sampled for.
        ids: sampled in the step.
        longest: tokens that a request can have.
    """
    params = request.sampling_params
    # The lists behind `num_output_tokens` and `num_tokens`: 256 streams ask 256 times a step.
    return (
        len(ids) == 1
        and request.status is RequestStatus.RUNNING
        and not request.num_stale_output_tokens
        and request.prefill_stats is None  # taken with the first frame
        and params is not None
        and ids[0] not in params.stop_token_ids  # type: ignore[operator]
        and len(request._output_token_ids) + 1 < request.max_tokens
        and len(request._all_token_ids) + 1 < longest
    )
