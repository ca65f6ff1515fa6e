"""A user for Locust and its charts: `locust -f load_tests/locustfile.py -H URL`.

TTS_VOICE (default alloy, which every server has) and TTS_FRAMES (codec frames, N or MIN:MAX; by
default the model decides) are what is asked for.

Locust is not installed with this project (`pip install locust`). Its response time is the end to
end time here; of each stream that is complete, `first playable`, `longest gap` and `dry` (what a
player that began at the first frame would have waited for, a failure above 50 ms) are rows of their
own. For the figures in docs/performance.md use `python -m load_tests`: Locust's clients wait for
one another's Python.

TTS_OUTCOME: a file for what there is at the very end, as JSON. Locust's own files are some seconds
older, and say nothing of the exceptions that decide over its exit status.
"""

import itertools
import json
import os
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from locust import HttpUser, constant, events, task  # pyright: ignore[reportMissingImports]
from requests.exceptions import RequestException

from load_tests.loops.client import BYTES_PER_SAMPLE, SPEECH_PATH, AudioShape
from load_tests.loops.metrics import CONTINUITY_S, play
from load_tests.loops.options import frames_of
from load_tests.loops.workload import Workload

SHAPE = AudioShape()
LENGTH = frames_of(os.environ.get("TTS_FRAMES", "natural"))
WORKLOAD = Workload(
    voice=os.environ.get("TTS_VOICE", "alloy"), min_frames=LENGTH[0], max_frames=LENGTH[1]
)
NUMBERS = itertools.count()
OUTCOME = os.environ.get("TTS_OUTCOME")


@events.init.add_listener
def _watch_the_end(environment: Any, **_: Any) -> None:
    if OUTCOME is not None and not environment.parsed_options.worker:
        file = Path(OUTCOME)
        environment.events.quit.add_listener(lambda **_: _write_outcome(environment, file))


def _write_outcome(environment: Any, file: Path) -> None:
    stats = environment.stats
    rows = [stats.entries[key] for key in sorted(stats.entries)] + [stats.total]
    outcome = {
        "rows": [
            {
                "name": row.name,
                "requests": row.num_requests,
                "failures": row.num_failures,
                "per_s": row.total_rps,
                "times_ms": [row.get_response_time_percentile(part) for part in (0.5, 0.95, 0.99)],
            }
            for row in rows
        ],
        "faults": [
            {"what": f"{fault.name}: {fault.error}", "times": fault.occurrences}
            for fault in stats.errors.values()
        ]
        + [
            {"what": f"exception: {raised['msg']}", "times": raised["count"]}
            for raised in environment.runner.exceptions.values()
        ],
    }
    file.write_text(json.dumps(outcome), encoding="utf-8")


class Listener(HttpUser):
    """Asks for a sentence, reads it to the end, asks for the next."""

    wait_time = constant(0)

    @task
    def speak(self) -> None:
        call = WORKLOAD.call(next(NUMBERS))
        received = 0
        arrivals: list[tuple[float, int]] = []
        start_s = time.perf_counter()
        with self.client.post(
            SPEECH_PATH,
            data=call.body,
            headers={"Content-Type": "application/json"},
            stream=True,
            catch_response=True,
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}: {response.text[:200]}")
                return
            try:
                for data in response.iter_content(chunk_size=None):
                    received += len(data)
                    arrivals.append((time.perf_counter() - start_s, received))
            except RequestException as error:
                # Locust itself would tell of an exception, and count no failure.
                response.failure(f"broke: {type(error).__name__}")
                return
            if not received or received % (BYTES_PER_SAMPLE * SHAPE.samples_per_frame):
                response.failure(f"{received} bytes are not whole frames")
                return
            # Locust stops the clock of a stream at its headers unless told otherwise.
            response.request_meta["response_time"] = 1000 * (time.perf_counter() - start_s)
            response.success()
        first_s = next(at_s for at_s, size in arrivals if size >= SHAPE.first_playable_bytes)
        gap_s = max((after - before for (before, _), (after, _) in pairwise(arrivals)), default=0.0)
        dry_s = play(arrivals, SHAPE).underrun_s
        self._note("first playable", first_s, received)
        self._note("longest gap", gap_s, received)
        is_heard = dry_s > CONTINUITY_S
        self._note("dry", dry_s, received, f"above {CONTINUITY_S:g} s" if is_heard else None)

    def _note(self, name: str, seconds: float, size: int, fault: str | None = None) -> None:
        self.environment.events.request.fire(
            request_type="audio",
            name=name,
            response_time=1000 * seconds,
            response_length=size,
            exception=None if fault is None else RuntimeError(fault),
            context={},
        )
