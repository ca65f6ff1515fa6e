"""One frame beside its floors."""

from load_tests.reports.frame_table import frame_table
from tests.unit.load_tests.values import frame_row


def test_each_time_of_a_frame_stands_beside_its_floor() -> None:
    *_, kept_up, behind = frame_table([frame_row(64, 6.0), frame_row(256, 9.0, 0.8)]).splitlines()
    assert kept_up == (
        "| 64 | 2.50 (1.50) | 2.00 (0.50) | 1.00 (0.40 c) | 3.50 (0.25) | 0.10 | 4.60 (2.00)"
        " | 6.00 (2.20) |"
    )
    assert behind.endswith("| 9.00 (2.20), decodes 80% |")
