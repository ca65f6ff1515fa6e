"""What the scheduler takes of a step's host time, ours beside vLLM's; no model runs.

python -m load_tests.stages.scheduler --size tiny --device cpu --streams 1 64 256
"""

import argparse
import statistics
import time
from dataclasses import replace
from typing import Any, Final

from vllm import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request

from load_tests.reports import files
from load_tests.stages.in_process import Stages, add_options, checkpoint_of, settings_for
from serve_app.models.talker.vllm.scheduling.scheduler import FrameScheduler

_STEPS: Final = 200
# Short, so that all streams begin in one step.
_PROMPT: Final = 4
_EOS, _CODE = 7, 100


def build(kind: type[AsyncScheduler], model: Any, blocks: int) -> AsyncScheduler:
    """A scheduler configured like an engine's, `model`, with so many KV blocks."""
    return kind(
        vllm_config=model.vllm_config,
        kv_cache_config=replace(model.kv_cache_config, num_blocks=blocks),
        structured_output_manager=model.structured_output_manager,
        block_size=model.block_size,
    )


def measure(scheduler: AsyncScheduler, streams: int) -> tuple[float, float]:
    """Medians over steps in which every stream goes on, in us: `schedule`, `update_from_output`."""
    for number in range(streams):
        params = SamplingParams(max_tokens=2 * _STEPS, stop_token_ids=[_EOS], detokenize=False)
        prompt = [_EOS + 1] * _PROMPT
        scheduler.add_request(Request(f"request-{number}", prompt, params, pooling_params=None))
    spans: list[tuple[float, float]] = []
    for _ in range(_STEPS):
        began_s = time.perf_counter()
        step = scheduler.schedule()
        scheduled_s = time.perf_counter()
        names = list(step.num_scheduled_tokens)
        rows = {name: row for row, name in enumerate(names)}
        output = ModelRunnerOutput(names, rows, sampled_token_ids=[[_CODE] for _ in names])
        resumed_s = time.perf_counter()
        scheduler.update_from_output(step, output)
        spans.append((scheduled_s - began_s, time.perf_counter() - resumed_s))
    schedule, update = (1e6 * statistics.median(column) for column in zip(*spans, strict=True))
    return schedule, update


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256])
    args = parser.parse_args()
    most = max(args.streams)
    stages = Stages.load(checkpoint_of(args), settings_for(most, 2048), args.device)
    core = stages.talker.inspect.core
    assert core is not None
    model: Any = core.engine.scheduler
    rows = []
    print("| streams | vLLM: schedule, us | update | ours: schedule, us | update |")
    print("|" + " ---: |" * 5)
    for streams in args.streams:
        blocks = streams * (1 + (_PROMPT + 2 * _STEPS) // model.block_size) + 1
        theirs = measure(build(AsyncScheduler, model, blocks), streams)
        ours = measure(build(FrameScheduler, model, blocks), streams)
        rows.append({"streams": streams, "vllm_us": theirs, "ours_us": ours})
        print(f"| {streams} | " + " | ".join(f"{value:,.0f}" for value in (*theirs, *ours)) + " |")
    if args.out:
        files.write_json(args.out, {"facts": stages.facts(args.commit), "rows": rows})
    stages.speech.close()


if __name__ == "__main__":
    main()
