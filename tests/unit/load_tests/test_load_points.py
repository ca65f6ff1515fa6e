"""Several runs of one load."""

import math
from typing import Any

from load_tests.reports.load_points import load_points
from load_tests.reports.targets import sustained_rate
from tests.unit.load_tests.values import late, level


def test_runs_of_one_load_become_median_and_range() -> None:
    points = load_points(
        [
            level("closed", 64),
            level("open", 20, 0, first_playable_s=late(0.010, 0.5), underruns=2),
            level("open", 20, 1, first_playable_s=late(0.030, 0.1)),
            level("open", 20, 2, first_playable_s=late(0.011, None), failures=1),
        ]
    )
    closed, opened = points
    assert (closed.loop, closed.load, closed.audio_s_per_s.median) == ("closed", 64, 100.0)
    assert (opened.seeds, opened.requests) == ((0, 1, 2), 30)
    assert (opened.underruns, opened.failures) == (2, 1)
    assert opened.p50_ms.text() == "11.0 (10.0 to 30.0)"
    # A run whose p95 is a failed request is the worst of all.
    assert opened.p95_ms.text() == "500.0 (100.0 to failed)"


def test_the_sustained_rate_ends_at_the_first_load_that_any_seed_fails() -> None:
    def rate(*levels: dict[str, Any]) -> float | None:
        return sustained_rate(load_points(levels))

    good = [level("open", hz, seed) for hz in (5, 20, 60) for seed in (0, 1)]
    assert rate(*good) == 60
    assert rate(*good, level("open", 60, 2, first_playable_s=late(0.02, 0.101))) == 20
    assert rate(*good, level("open", 20, 2, underruns=1)) == 5
    assert rate(level("open", 5, failures=1)) == 0
    assert rate(level("closed", 1)) is None


def test_bursts_are_loads_of_their_own_and_keep_each_burst() -> None:
    points = load_points(
        [
            level("cold", 16, first_playable_s=late(0.2, 0.9)),
            level("burst", 16, bursts_p95_s=[0.05, None]),
            level("burst", 64, bursts_p95_s=[0.15]),
        ]
    )
    assert [(point.loop, point.load) for point in points] == [
        ("cold", 16),
        ("burst", 16),
        ("burst", 64),
    ]
    assert points[0].bursts_p95_ms == ()
    # A burst whose p95 is a failed request is the worst of all, and not left out.
    assert points[1].bursts_p95_ms == (50.0, math.inf)
    assert sustained_rate(points) is None
