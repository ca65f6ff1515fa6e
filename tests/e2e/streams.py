"""Requests that tests of several checkpoints make of a server, and a client that never stops."""

import threading
from collections.abc import Callable
from typing import Any

import httpx

from tests.waiting import wait_until

NUM_FRAMES = 24
LIMITS = {"min_new_tokens": NUM_FRAMES, "max_new_tokens": NUM_FRAMES}
BODY = {"input": "One, two, three.", "seed": 7, "response_format": "pcm", **LIMITS}
CLIENT_S = 120.0
# For a server that starts something beside.
PATIENCE_S = 240.0


def ask(url: str, **fields: Any) -> httpx.Response:
    """The answer to a request for speech with these fields."""
    # Or each would read all certificates that there are, for 25 ms of a core.
    plain = {"timeout": CLIENT_S, "verify": False}
    return httpx.post(f"{url}/v1/audio/speech", json={**BODY, **fields}, **plain)


class Streams:
    """A client that has one stream after the other; a context."""

    def __init__(self, url: str, **fields: Any) -> None:
        self._url = url
        self._fields = fields
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.answers: list[bytes] = []
        self.failures: list[str] = []

    def __enter__(self) -> "Streams":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def until(self, condition: Callable[[], object]) -> None:
        wait_until(condition, PATIENCE_S, told=self.failures)

    def _ask(self) -> None:
        while not self._stopping.is_set():
            try:
                answer = ask(self._url, **self._fields)
                self.answers.append(answer.raise_for_status().content)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
