"""What HAProxy, an ingress or the stages behind it have refused of late, for the scaling policy.

A stage cannot tell: it does not see the first two, and a call that it refuses is made elsewhere.
"""

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from serve_app import metrics
from serve_app.scaling import snapshot as names

# An application that has not told for so long has gone, or its controller has been away.
_MAX_AGE_S: Final = 5.0


class CountedRefusals:
    """A recorder that passes everything on, and counts refusals of the last seconds.

    Belongs to one event loop.

    Args:
        own: the application of the ingress.
        applications: of the models that it serves, by their names.
    """

    def __init__(
        self,
        recorder: metrics.Recorder,
        own: str,
        applications: Callable[[], Mapping[str, str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._recorder = recorder
        self._own = own
        self._applications = applications
        self._clock = clock
        self._refused: deque[tuple[float, float, str]] = deque()

    def count(self, metric: metrics.Metric, **labels: str) -> None:
        if metric in (metrics.REFUSED_AT_INGRESS, metrics.REFUSED_BY_STAGES):
            self._note(1, labels["model"])
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
        """By the names of `scaling.snapshot`. HAProxy refuses what is for any model, where none has
        room: each has its part of these.
        """
        self._forget(self._clock())
        applications = self._applications()
        told = dict.fromkeys((*applications.values(), self._own), 0.0)
        unknown = 0.0
        for _, number, model in self._refused:
            if model:
                told[applications.get(model, self._own)] += number
            else:
                unknown += number
        # Where nobody knows any better, each has had as many.
        parts = told if any(told.values()) else dict.fromkeys(applications.values(), 1.0)
        parts = parts or {self._own: 1.0}
        share = unknown / sum(parts.values())
        rates = {
            name: (told[name] + parts.get(name, 0.0) * share) / names.REFUSED_S for name in told
        }
        own = rates.pop(self._own)
        return {
            names.REFUSED: own,
            **{names.REFUSED_OF + name: rate for name, rate in rates.items()},
        }

    def _note(self, number: float, model: str = "") -> None:
        now_s = self._clock()
        self._forget(now_s)
        self._refused.append((now_s, number, model))

    def _forget(self, now_s: float) -> None:
        """Serve asks for no report where the number of replicas is fixed."""
        while self._refused and now_s - self._refused[0][0] > names.REFUSED_S:
            self._refused.popleft()


class Elsewhere:
    """What ingresses of one application refuse for the models of others: it comes from the replicas
    of one and is a matter of the policies of the others, all of which Serve's controller calls.
    """

    def __init__(self) -> None:
        self._told: dict[str, tuple[float, Mapping[str, float]]] = {}

    def note(self, application: str, reports: Iterable[Mapping[str, float]], at_s: float) -> None:
        """What the ingresses of an application report."""
        totals = defaultdict[str, float](float)
        for report in reports:
            for name, rate in report.items():
                if name.startswith(names.REFUSED_OF):
                    totals[name.removeprefix(names.REFUSED_OF)] += rate
        self._told[application] = (at_s, totals)

    def of(self, application: str, at_s: float) -> float:
        """Requests per second for the models of an application that are refused elsewhere."""
        lately = (told for told_s, told in self._told.values() if at_s - told_s <= _MAX_AGE_S)
        return sum(told.get(application, 0.0) for told in lately)


# For all applications of a controller.
ELSEWHERE: Final = Elsewhere()
