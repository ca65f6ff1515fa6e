"""What replicas say of their start, as a load test reads it."""

import logging

import pytest

from load_tests.servers.starts import of_log
from serve_app.deployments.ray_serve import starts

PARTS = {"replica": 0.25, "standby": 1.0, "first audio graphs": 2.5}
LOG = "replica_tts_Fused_x7k2.log"


def test_a_line_that_was_said_is_found_again(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, starts.logger.name):
        starts.say(PARTS)
    assert caplog.messages == [
        "started in 3.75 s: replica 0.25, standby 1.00, first audio graphs 2.50"
    ]
    line = f"INFO 2026-11-26 18:00:00,123 tts_Fused x7k2 -- {caplog.messages[0]}"
    (start,) = of_log(LOG, f"INFO before\n{line}\nINFO after, 1.00\n")
    assert (start.deployment, start.parts) == ("Fused", PARTS)
    assert start.said_at == "2026-11-26 18:00:00,123"
    assert start.text() == (
        "Fused: 3.8 s in its process (replica 0.2, standby 1.0, first audio graphs 2.5)"
    )


def test_other_logs_tell_of_no_start() -> None:
    line = "started in 1.00 s: replica 1.00"
    assert not list(of_log("controller_123.log", line))
    assert not list(of_log(LOG, "still starting"))
