"""vLLM's scheduler with a short way for requests that only go on: one more frame each.

vLLM asks of every running request in every step what most of them never have: drafts, encoder
inputs, connectors, grammars, cached prefixes. With 256 streams that takes a third of what a step
takes on the device (docs/decisions/0009-host-time-per-step.md). Here requests that go on are
counted forward in arrays (`counters`), before and after the step; whatever else happens to a
request, its arrival, its preemption and its end included, is vLLM's own code.
"""

import copy
from collections.abc import Iterable
from itertools import compress
from typing import Any, Final

import numpy as np
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from serve_app.models.talker.runtime import RUNTIME_KEY, RUNTIMES
from serve_app.models.talker.vllm.scheduling.counters import Counters

# With fewer requests, a loop over their objects is as quick as arithmetic with arrays.
_FEWEST: Final = 32
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
        self._counters = Counters(self.max_num_running_reqs, self.max_model_len)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self._admit()
        found = self._going_on()
        if found is None:
            self._counters.leave_all()
            return super().schedule(throttle_prefills)
        due, going_on = found
        cached = self._count_forward(due, going_on)
        number = len(cached.req_ids)
        members, active = self._counters.requests, self.max_num_active_reqs
        budget = self.max_num_scheduled_tokens
        self.max_num_scheduled_tokens = budget - number
        if members:
            # One stands for all; it had its turn in this step, if it has any.
            members[0].next_decode_eligible_step = self.current_step + 2
            self.running = [members[0], *self.running[len(members) :]]
            self.max_num_active_reqs = active - len(members) + 1
        try:
            # These have had their turn in this step, so vLLM passes over them.
            output = super().schedule(throttle_prefills)
        finally:
            self.max_num_scheduled_tokens = budget
            if members:
                self.running = [*members, *self.running[1:]]
                self.max_num_active_reqs = active
        output.num_scheduled_tokens = {
            **dict.fromkeys(cached.req_ids, 1),
            **output.num_scheduled_tokens,
        }
        output.total_num_scheduled_tokens += number
        output.scheduled_cached_reqs = cached
        return output

    def _admit(self) -> None:
        """Count requests in arrays from now on, in the order in which they run."""
        if self._inflight_prefills or len(self.running) < _FEWEST:
            return
        for request in self.running[len(self._counters) :]:
            if not (_is_regular(request) and self._counters.admits(request)):
                return
            self._counters.join(request)

    def _going_on(self) -> tuple[np.ndarray, list[Request]] | None:
        """Who gets the next frame: members (bool [members]) and others that run.

        None if vLLM has to see to all. That is when one of them still prefills, or when memory for
        them has to be taken from others.
        """
        if self._inflight_prefills or self._pause_state != PauseState.UNPAUSED:
            return None
        due = self._counters.due()
        blocks = len(self._counters.opening(due, self._tokens_per_block))
        going_on: list[Request] = []
        last = self.max_model_len - 1
        for request in self.running[len(self._counters) :]:
            if not _is_regular(request):
                return None
            computed, ahead = request.num_computed_tokens, request.num_output_placeholders
            if ahead and computed + 2 - ahead >= request.num_prompt_tokens + request.max_tokens:
                continue  # its last frame is on the device
            if computed >= last:
                continue
            going_on.append(request)
            blocks += computed % self._tokens_per_block == 0
        if np.count_nonzero(due) + len(going_on) > self.max_num_scheduled_tokens:
            return None
        if blocks > self.kv_cache_manager.block_pool.get_num_free_blocks():
            return None
        return due, going_on

    def _count_forward(self, due: np.ndarray, going_on: list[Request]) -> CachedRequestData:
        """Give each its next position, and a block where that is the first of one."""
        data = CachedRequestData.make_empty()
        new_block_ids: list[tuple[list[int], ...] | None] = [None] * int(np.count_nonzero(due))
        opening = self._counters.opening(due, self._tokens_per_block)
        for place, request in self._counters.settled(due, opening):
            new_block_ids[place] = self._new_block(request)
        data.req_ids, data.num_computed_tokens, data.num_output_tokens = (
            self._counters.count_forward(due)
        )
        next_step = self.current_step + 2
        for request in going_on:
            computed = request.num_computed_tokens
            opens = computed % self._tokens_per_block == 0
            new_block_ids.append(self._new_block(request) if opens else None)
            data.req_ids.append(request.request_id)
            data.num_computed_tokens.append(computed)
            data.num_output_tokens.append(computed + 1 - request.num_prompt_tokens)
            request.num_computed_tokens = computed + 1
            request.num_in_flight_tokens += 1
            request.num_output_placeholders += 1
            request.next_decode_eligible_step = next_step
        data.new_block_ids = new_block_ids
        return data

    def _new_block(self, request: Request) -> tuple[list[int], ...] | None:
        new = self.kv_cache_manager.allocate_slots(request, 1)
        assert new is not None, "the free blocks were counted"
        return new.get_block_ids(allow_none=True)

    def advance(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> tuple[list[str], dict[int, EngineCoreOutputs]]:
        """`update_from_output`, without an object for each request that goes on.

        Returns:
            Requests for which the step means one more frame, with more to come; and what else
            happened, by client.
        """
        sampled, rows = model_runner_output.sampled_token_ids, model_runner_output.req_id_to_index
        tokens = scheduler_output.num_scheduled_tokens
        names = list(tokens)
        ids = [sampled[rows[name]] for name in names]
        counted = self._counters.take(names, list(tokens.values()), ids)
        going_on = list(compress(names, counted))
        others: dict[str, int] = {}
        requests, longest = self.requests, self.max_model_len
        left = False
        for place in np.flatnonzero(~counted).tolist():
            name = names[place]
            request = requests.get(name)
            if name in self._counters:  # it ends
                self._counters.leave(name)
                left = True
            elif request is not None and _goes_on(request, ids[place], longest):
                request.num_in_flight_tokens -= tokens[name]
                request.num_output_placeholders -= 1
                # What `append_output_token_ids` does; without prefix caching there are no hashes.
                request._output_token_ids.append(ids[place][0])
                request._all_token_ids.append(ids[place][0])
                going_on.append(name)
                continue
            others[name] = tokens[name]
        rest = copy.copy(scheduler_output)
        rest.num_scheduled_tokens = others
        outputs = super().update_from_output(rest, model_runner_output)
        if left and any(name in requests for name in others):
            self._keep_members_first()
        return going_on, outputs

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        going_on, outputs = self.advance(scheduler_output, model_runner_output)
        if going_on:
            sampled = model_runner_output.sampled_token_ids
            rows = model_runner_output.req_id_to_index
            ours = outputs.setdefault(_CLIENT, EngineCoreOutputs())
            ours.outputs = [
                *(EngineCoreOutput(name, sampled[rows[name]]) for name in going_on),
                *ours.outputs,
            ]
        return outputs

    def finish_requests(
        self, request_ids: str | Iterable[str] | None, finished_status: RequestStatus
    ) -> list[Request]:
        if request_ids is None:
            self._counters.leave_all()
        else:
            request_ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
            for name in request_ids:
                self._counters.leave(name)
        return super().finish_requests(request_ids, finished_status)

    def _keep_members_first(self) -> None:
        """Where a request has left and runs on, count all of them anew."""
        if self._counters.requests != self.running[: len(self._counters)]:
            self._counters.leave_all()

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        self._counters.leave(request.request_id)
        self._preempted.add(request.request_id)
        super()._preempt_request(request, *args, **kwargs)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        self._preempted.discard(request.request_id)
        return super()._free_request(request, *args, **kwargs)


def _is_regular(request: Request) -> bool:
    """Whether the next position of a request that runs is the only one to be computed."""
    ahead, computed = request.num_output_placeholders, request.num_computed_tokens
    return len(request._all_token_ids) + ahead == computed + 1


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
