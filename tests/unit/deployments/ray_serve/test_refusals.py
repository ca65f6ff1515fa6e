"""Refusals of the last seconds, beside the metric."""

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
    for _ in range(5):
        counted.count(metrics.REFUSED_AT_INGRESS, model="m")
    counted.count(metrics.STREAMS_LOST, hop="ingress")
    assert counted.report() == {"refused_per_s": 0.5}
    assert len(kept.counted) == 6
    counted.add(metrics.REFUSED_AT_PROXY, 20)
    assert counted.report() == {"refused_per_s": 2.5}
    now_s[0] = 111.0
    assert counted.report() == {"refused_per_s": 0.0}
