"""The recorder through the real classes of Ray Serve, which need no cluster until they export."""

from ray.serve.metrics import Counter, Gauge, Histogram

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
