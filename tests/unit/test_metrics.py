"""The recorder through the real classes of Ray Serve, which need no cluster until they export."""

from pathlib import Path

import pytest
from ray.serve.metrics import (
    APPLICATION_TAG,
    DEPLOYMENT_TAG,
    REPLICA_TAG,
    ROUTE_TAG,
    Counter,
    Gauge,
    Histogram,
)

from serve_app import metrics


def test_any_status_can_be_counted_and_any_format_observed():
    made = []

    def counter(*args, **options):
        made.append(args[0])
        return Counter(*args, **options)

    recorder = metrics.MetricsRecorder(counter, Histogram, Gauge)
    for status in ("200", "401", "405", "415", "422", "507"):
        recorder.count(metrics.REQUESTS, status=status)
    recorder.observe(metrics.AUDIO_DURATION, 1.5, model="m", format="opus", transport="stream")
    assert made == [metrics.REQUESTS.name]


# Told by `http/observe/exposition.py`, not through Ray.
OWN = (metrics.BUILD_INFO, metrics.READY, metrics.REPLICAS, metrics.MODEL_READY)


@pytest.mark.parametrize(
    "metric",
    [m for m in vars(metrics).values() if isinstance(m, metrics.Metric) and m not in OWN],
    ids=lambda metric: metric.name,
)
def test_no_label_is_one_that_serve_sets_itself(metric):
    """On a replica, and only there, such a metric cannot be made."""
    reserved = {APPLICATION_TAG, DEPLOYMENT_TAG, REPLICA_TAG, ROUTE_TAG}
    assert not reserved & set(metric.labels)


def test_the_page_of_metrics_has_all_there_are_and_no_other():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    stated = [line for line in page.splitlines() if line.startswith("| `tts_")]
    assert stated == [
        f"| `{metric.name}` | {kind_of(metric)} | {', '.join(metric.labels)} | {metric.help} |"
        for metric in vars(metrics).values()
        if isinstance(metric, metrics.Metric)
    ]


def kind_of(metric):
    return "gauge" if metric.is_gauge else "histogram" if metric.buckets else "counter"


def test_a_model_may_have_a_name_in_any_letters():
    recorder = metrics.MetricsRecorder(Counter, Histogram, Gauge)
    recorder.observe(metrics.AUDIO_DURATION, 1.0, model="é проверка", format="wav", transport="ws")
