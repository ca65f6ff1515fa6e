"""Refusals of the last seconds, beside the metric."""

from collections import deque

from serve_app import metrics
from serve_app.deployments.ray_serve.refusals import CountedRefusals


class Kept(metrics.NoRecorder):
    def __init__(self) -> None:
        self.counted: list[metrics.Metric] = []

    def count(self, metric: metrics.Metric, **labels: str) -> None:
        del labels
        self.counted.append(metric)


def test_what_was_refused_of_late_is_told_and_everything_is_passed_on() -> None:
    now_s, kept = [100.0], Kept()
    counted = CountedRefusals(kept, lambda: now_s[0])
    assert counted.report() == {"refused_per_s": 0.0}
    for _ in range(4):
        counted.count(metrics.REFUSED_AT_INGRESS, model="m")
    for _ in range(2):
        counted.count(metrics.REFUSED_BY_STAGES, model="m")
    counted.count(metrics.STREAMS_LOST, hop="ingress")
    assert counted.report() == {"refused_per_s": 2.0}
    assert len(kept.counted) == 7
    counted.add(metrics.REFUSED_AT_PROXY, 24)
    assert counted.report() == {"refused_per_s": 10.0}
    now_s[0] = 103.5
    assert counted.report() == {"refused_per_s": 0.0}


def test_nothing_piles_up_where_nobody_asks_for_the_report() -> None:
    """As Serve does not, of an ingress whose number of replicas is fixed."""
    now_s = [100.0]
    counted = CountedRefusals(Kept(), lambda: now_s[0])
    for _ in range(100):
        now_s[0] += 1.0
        counted.count(metrics.REFUSED_AT_INGRESS, model="m")
    (kept,) = (len(value) for value in vars(counted).values() if isinstance(value, deque))
    assert kept == 4
