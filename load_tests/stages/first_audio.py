"""Where the first audio of one stream spends its time, in one process, without Serve.

    python -m load_tests.stages.first_audio --size 1.7b

Medians in ms of the way from the call to the first samples: `queued` until the engine's thread has
taken the request, `launched` until the host has enqueued the prefill step, `dispatched` until that
step's frame, with its samples where they are made behind it on the device, is handed out, `heard`
until the event loop has the first chunk of audio.
"""

import argparse
import asyncio
import itertools
import os
import statistics
import time
from contextlib import aclosing

from load_tests.reports import files, report
from load_tests.stages.in_process import Stages, add_options, checkpoint_of, request, settings_for
from serve_app.models.fused.speech import FusedSpeech

NAMES = ("queued", "launched", "dispatched", "heard")


class Probe:
    """Notes when a function is entered or left for the first time after `start`."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def start(self) -> None:
        self.times = {"start": time.perf_counter()}

    def note(self, name: str) -> None:
        self.times.setdefault(name, time.perf_counter())

    def after(self, owner: object, attribute: str, name: str) -> None:
        inner = getattr(owner, attribute)

        def noted(*args, **kwargs):
            result = inner(*args, **kwargs)
            self.note(name)
            return result

        setattr(owner, attribute, noted)


async def once(speech: FusedSpeech, probe: Probe, seed: int) -> list[float]:
    probe.start()
    async with aclosing(speech.speak(request(seed, 4))) as chunks:
        async for _ in chunks:
            probe.note("heard")
    moments = [probe.times[name] for name in ("start", *NAMES)]
    return [1000 * (b - a) for a, b in itertools.pairwise(moments)]


async def measure(stages: Stages, probe: Probe) -> dict[str, float]:
    """Medians over 20 streams, one after the other, in ms, and their sum."""
    runs = []
    for seed in range(25):
        runs.append(await once(stages.speech, probe, seed))
        await asyncio.sleep(0.03)
    medians = [statistics.median(column) for column in zip(*runs[5:], strict=True)]
    return {**dict(zip(NAMES, medians, strict=True)), "sum": sum(medians)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_options(parser)
    args = parser.parse_args()
    stages = Stages.load(checkpoint_of(args), settings_for(8, 1024), args.device)
    thread, probe = stages.talker.inspect, Probe()
    assert thread.core is not None
    probe.after(thread.core, "add", "queued")
    probe.after(thread.core.engine.model_executor, "sample_tokens", "launched")
    probe.after(thread, "dispatch", "dispatched")
    facts = stages.facts(args.commit)
    print(facts)
    medians = asyncio.run(measure(stages, probe))
    print(report.table_line(list(medians)) + "\n|" + " ---: |" * len(medians))
    print(report.table_line([f"{ms:.2f}" for ms in medians.values()]), flush=True)
    if args.out:
        files.write_json(args.out, {"facts": facts, "size": args.size, "medians_ms": medians})
    os._exit(0)


if __name__ == "__main__":
    main()
