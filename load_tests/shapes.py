"""Loads over time for Locust: `locust -f load_tests/locustfile.py,load_tests/shapes.py -H URL`.

TTS_SHAPE chooses one of `loops.shapes.SHAPES`; TTS_USERS is how many listeners there are at most
and TTS_MINUTES how long it takes.
"""

import os

from locust import LoadTestShape  # pyright: ignore[reportMissingImports]

from load_tests.loops.shapes import users_at


class Load(LoadTestShape):
    """The shape that the environment names."""

    def tick(self) -> tuple[int, float] | None:
        users = int(os.environ.get("TTS_USERS", "16"))
        total_s = 60 * float(os.environ.get("TTS_MINUTES", "5"))
        shape = os.environ.get("TTS_SHAPE", "burst")
        count = users_at(shape, self.get_run_time(), users, total_s)
        # Spawned within a second, whatever the number: a burst is no ramp.
        return None if count is None else (count, float(max(1, users)))
