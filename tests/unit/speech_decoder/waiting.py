"""A runner for tests that wait: its jobs belong to an event loop on a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from serve_app.models.speech_decoder.jobs import DecodeJob
from serve_app.models.speech_decoder.runner import SpeechDecoderRunner

T = TypeVar("T")


class WaitingRunner(SpeechDecoderRunner):
    """`submit` gives a future that any thread can wait for."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._loop = asyncio.new_event_loop()
        self._loop_thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._loop_thread.start()

    def submit(
        self,
        slot: int,
        codes: np.ndarray,
        *,
        discard: bool = False,
        primed: int | None = None,
        final: bool = False,
    ) -> "Future[np.ndarray]":
        """What `enqueue` does; int16 [T * samples_per_frame], empty if discarded."""
        job = DecodeJob(codes, self._loop.create_future(), discard, primed, final)

        async def wait() -> np.ndarray:
            return await job.future

        self.enqueue(slot, job)
        return asyncio.run_coroutine_threadsafe(wait(), self._loop)

    def release(self, slot: int) -> None:
        self._there(lambda: super(WaitingRunner, self).release(slot))

    def close(self) -> None:
        super().close()
        if self._loop_thread.is_alive():
            # What was abandoned is told before.
            self._there(lambda: None)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop_thread.join()
            self._loop.close()

    def _there(self, call: Callable[[], T]) -> T:
        async def run() -> T:
            return call()

        coroutine: Coroutine[Any, Any, T] = run()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)
