"""Refusals of the last seconds, beside the metric."""

from collections import deque

from serve_app import metrics
from serve_app.deployments.ray_serve.refusals import CountedRefusals, Elsewhere


class Kept(metrics.NoRecorder):
    def __init__(self) -> None:
        self.counted: list[metrics.Metric] = []

    def count(self, metric: metrics.Metric, **labels: str) -> None:
        del labels
        self.counted.append(metric)


def test_what_was_refused_of_late_is_told_and_everything_is_passed_on() -> None:
    now_s, kept = [100.0], Kept()
    counted = CountedRefusals(kept, "tts", lambda: {"m": "tts"}, lambda: now_s[0])
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
    counted = CountedRefusals(Kept(), "tts", dict, lambda: now_s[0])
    for _ in range(100):
        now_s[0] += 1.0
        counted.count(metrics.REFUSED_AT_INGRESS, model="m")
    (kept,) = (len(value) for value in vars(counted).values() if isinstance(value, deque))
    assert kept == 4


def test_of_several_models_each_application_is_told_its_own() -> None:
    there: dict[str, str] = {}
    counted = CountedRefusals(Kept(), "front", lambda: there, lambda: 100.0)
    counted.add(metrics.REFUSED_AT_PROXY, 6)
    # No model has said its name yet, and what HAProxy refuses is for any.
    assert counted.report() == {"refused_per_s": 2.0}
    there |= {"a": "app-a", "b": "app-b"}
    assert counted.report() == {
        "refused_per_s": 0.0,
        "refused_per_s/app-a": 1.0,
        "refused_per_s/app-b": 1.0,
    }
    for model, number in (("a", 9), ("b", 3), ("gone", 0)):
        for _ in range(number):
            counted.count(metrics.REFUSED_AT_INGRESS, model=model)
    assert counted.report() == {
        "refused_per_s": 0.0,
        "refused_per_s/app-a": 4.5,
        "refused_per_s/app-b": 1.5,
    }


def test_what_is_refused_of_another_model_asks_for_no_replica_of_the_own() -> None:
    models = {"mine": "own", "theirs": "other"}
    counted = CountedRefusals(Kept(), "own", lambda: models, lambda: 100.0)
    for _ in range(6):
        counted.count(metrics.REFUSED_BY_STAGES, model="theirs")
    assert counted.report() == {"refused_per_s": 0.0, "refused_per_s/other": 2.0}


def test_what_one_application_refuses_for_another_is_known_while_it_tells() -> None:
    elsewhere = Elsewhere()
    reports = [
        {"refused_per_s": 9.0, "refused_per_s/a": 2.0, "refused_per_s/b": 0.5},
        {"refused_per_s": 0.0, "refused_per_s/a": 1.0},
    ]
    elsewhere.note("front", reports, 100.0)
    elsewhere.note("other", [{"refused_per_s/a": 4.0}], 103.0)
    assert [elsewhere.of(name, 104.0) for name in ("a", "b", "front")] == [7.0, 0.5, 0.0]
    assert elsewhere.of("a", 107.0) == 4.0
    elsewhere.note("front", [], 108.0)
    assert elsewhere.of("a", 109.0) == 0.0
