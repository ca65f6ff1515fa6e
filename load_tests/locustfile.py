"""A user for Locust and its charts: `locust -f load_tests/locustfile.py -H URL`.

Locust is not installed with this project (`pip install locust`). Its response time is the end to
end time here; `first playable` is a row of its own. For the figures in README.md use
`python -m load_tests`: Locust's clients wait for one another's Python.
"""

import itertools
import time

from locust import HttpUser, constant, task  # pyright: ignore[reportMissingImports]

from load_tests.loops.client import BYTES_PER_SAMPLE, SPEECH_PATH, AudioShape
from load_tests.loops.workload import Workload

SHAPE = AudioShape()
WORKLOAD = Workload(min_frames=None, max_frames=None)
NUMBERS = itertools.count()


class Listener(HttpUser):
    """Asks for a sentence, reads it to the end, asks for the next."""

    wait_time = constant(0)

    @task
    def speak(self) -> None:
        call = WORKLOAD.call(next(NUMBERS))
        received = 0
        first_playable_s = None
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
            for data in response.iter_content(chunk_size=None):
                received += len(data)
                if first_playable_s is None and received >= SHAPE.first_playable_bytes:
                    first_playable_s = time.perf_counter() - start_s
            if not received or received % (BYTES_PER_SAMPLE * SHAPE.samples_per_frame):
                response.failure(f"{received} bytes are not whole frames")
                return
            # Locust stops the clock of a stream at its headers unless told otherwise.
            response.request_meta["response_time"] = 1000 * (time.perf_counter() - start_s)
            response.success()
        self.environment.events.request.fire(
            request_type="audio",
            name="first playable",
            response_time=1000 * (first_playable_s or 0.0),
            response_length=received,
            exception=None,
            context={},
        )
