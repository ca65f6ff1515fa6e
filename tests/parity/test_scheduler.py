"""The scheduler with a short way decides in every step what vLLM's own decides."""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from vllm import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from load_tests.stages.scheduler import build
from serve_app.models.talker.vllm.scheduling import scheduler
from serve_app.models.talker.vllm.scheduling.scheduler import FrameScheduler
from tests.parity.engines import talker

EOS, STEPS, MAX_IN_FLIGHT = 7, 500, 2

Make = Callable[[type[AsyncScheduler], int], AsyncScheduler]


@pytest.fixture(scope="module")
def make(tiny_checkpoint) -> Iterator[Make]:
    """A function that builds a scheduler with so many KV blocks, as an engine would."""
    path = tiny_checkpoint("custom_voice", "tiny", eos="unreachable")
    with talker(path, max_num_seqs=12, max_model_len=96, max_num_batched_tokens=96) as engine:
        model: Any = engine.inspect.core.engine.scheduler
        yield lambda kind, blocks: build(kind, model, blocks)


class Drive:
    """Requests that come, speak, end and are aborted at random, two steps in flight."""

    def __init__(self, scheduler: AsyncScheduler, seed: int) -> None:
        self.scheduler = scheduler
        self.random = random.Random(seed)
        self.made: Counter[str] = Counter()
        self.log: list[Any] = []
        self.in_flight: deque[tuple[Any, ModelRunnerOutput]] = deque()

    def run(self) -> list[Any]:
        added = 0
        for _ in range(STEPS):
            for _ in range(self.random.choice((0, 0, 0, 1, 2))):
                added += 1
                self.scheduler.add_request(self.request(f"r{added}"))
            if self.random.random() < 0.05 and added:
                # Of one that is not there any more, vLLM takes no notice.
                name = f"r{self.random.randint(max(1, added - 8), added)}"
                self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            while len(self.in_flight) >= self.random.randint(1, MAX_IN_FLIGHT):
                self.collect()
            self.launch()
        while self.in_flight:
            self.collect()
        return self.log

    def request(self, name: str) -> Request:
        params = SamplingParams(
            max_tokens=self.random.randint(1, 50), stop_token_ids=[EOS], detokenize=False
        )
        prompt = [3] * self.random.randint(4, 60)
        due_ms = self.random.choice((0, self.scheduler.current_step, 10**6))
        return Request(name, prompt, params, pooling_params=None, priority=due_ms)

    def launch(self) -> None:
        step = self.scheduler.schedule()
        cached = step.scheduled_cached_reqs
        self.log.append(
            (
                list(step.num_scheduled_tokens.items()),
                step.total_num_scheduled_tokens,
                [
                    (new.req_id, new.block_ids, new.num_computed_tokens)
                    for new in step.scheduled_new_reqs
                ],
                cached.req_ids,
                cached.new_block_ids,
                cached.num_computed_tokens,
                cached.num_output_tokens,
                sorted(step.finished_req_ids),
                sorted(step.preempted_req_ids or ()),
            )
        )
        names = list(step.num_scheduled_tokens)
        sampled = [
            [] if self.scheduler.requests[name].is_prefill_chunk else [self.sample(name)]
            for name in names
        ]
        rows = {name: row for row, name in enumerate(names)}
        output = ModelRunnerOutput(names, rows, sampled_token_ids=sampled)
        self.in_flight.append((step, output))

    def sample(self, name: str) -> int:
        self.made[name] += 1
        ends = random.Random(f"{name} {self.made[name]}").random() < 0.02
        return EOS if ends else 100

    def collect(self) -> None:
        step, output = self.in_flight.popleft()
        outputs = self.scheduler.update_from_output(step, output)
        self.log.append(
            sorted(
                (one.request_id, one.new_token_ids, str(one.finish_reason), one.stop_reason)
                for answer in outputs.values()
                for one in answer.outputs
            )
        )


@pytest.mark.parametrize("blocks", [14, 200], ids=["too few blocks", "enough blocks"])
@pytest.mark.parametrize("seed", range(4))
def test_every_step_is_that_of_vllm(make, monkeypatch, blocks: int, seed: int) -> None:
    found: list[int] = []
    in_arrays: list[int] = []
    going_on = FrameScheduler._going_on

    def counted(self: FrameScheduler) -> Any:
        requests = going_on(self)
        if requests is None:
            found.append(-1)
        else:
            members, others = int(requests[0].sum()), len(requests[1])
            in_arrays.append(members)
            found.append(members + others)
        return requests

    monkeypatch.setattr(FrameScheduler, "_going_on", counted)
    monkeypatch.setattr(scheduler, "_FEWEST", 4)
    theirs = Drive(make(AsyncScheduler, blocks), seed).run()
    ours = Drive(make(FrameScheduler, blocks), seed).run()
    for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert our == their, f"entry {index}"
    assert sum(count > 0 for count in found) > STEPS / 3, "the short way was hardly taken"
    assert sum(count > 0 for count in in_arrays) > STEPS / 3, "hardly any was counted in arrays"
    preempted = sum(len(entry[8]) for entry in theirs if isinstance(entry, tuple))
    assert (preempted > 0) == (blocks == 14)
    assert (-1 in found) or blocks > 14
