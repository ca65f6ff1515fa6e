"""What HAProxy, an ingress or the stages behind it have refused of late, for the scaling policy.

A stage cannot tell: it does not see the first two, and a call that it refuses is made elsewhere.
"""

import time
from collections import deque
from collections.abc import Callable

from serve_app import metrics
from serve_app.scaling import snapshot as names


class CountedRefusals:
    """A recorder that passes everything on, and counts refusals of the last seconds.

    Belongs to one event loop.
    """

    def __init__(
        self, recorder: metrics.Recorder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._refused: deque[tuple[float, float]] = deque()

    def count(self, metric: metrics.Metric, **labels: str) -> None:
        if metric in (metrics.REFUSED_AT_INGRESS, metrics.REFUSED_BY_STAGES):
            self._note(1)
        self._recorder.count(metric, **labels)

    def add(self, metric: metrics.Metric, amount: float, **labels: str) -> None:
        if metric == metrics.REFUSED_AT_PROXY:
            self._note(amount)
        self._recorder.add(metric, amount, **labels)

    def observe(self, metric: metrics.Metric, value: float, **labels: str) -> None:
        self._recorder.observe(metric, value, **labels)

    def set(self, metric: metrics.Metric, value: float, **labels: str) -> None:
        self._recorder.set(metric, value, **labels)

    def report(self) -> dict[str, float]:
        """By the names of `scaling.snapshot`."""
        self._forget(self._clock())
        return {names.REFUSED: sum(count for _, count in self._refused) / names.REFUSED_S}

    def _note(self, number: float) -> None:
        now_s = self._clock()
        self._forget(now_s)
        self._refused.append((now_s, number))

    def _forget(self, now_s: float) -> None:
        """Serve asks for no report where the number of replicas is fixed."""
        while self._refused and now_s - self._refused[0][0] > names.REFUSED_S:
            self._refused.popleft()
