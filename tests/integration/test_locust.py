"""Locust, as its users run it, against the application around fakes."""

import socket
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

from load_tests.outside import locust_run
from serve_app.errors import StageFailed
from tests.integration.test_load_client import Service, served


# Not imported: gevent would take this process' sockets.
@pytest.mark.skipif(find_spec("locust") is None, reason="the extra `load` is not installed")
def test_listeners_hear_whole_streams_and_leave_a_report(tmp_path: Path) -> None:
    with served(Service().app) as url:
        load = locust_run.Load(url, "steady", users=2, minutes=0.05, processes=2)
        with socket.socket() as taken:
            # Where all would meet that are not told of another place; taken by others is as good.
            with suppress(OSError):
                taken.bind(("0.0.0.0", 5557))
            locust_run.run(load, tmp_path)
    outcome = locust_run.outcome(tmp_path)
    found = {row["name"]: row for row in outcome["rows"]}
    assert found, (tmp_path / "locust.log").read_text(encoding="utf-8")[-2000:]
    assert found["/v1/audio/speech"]["failures"] == 0
    assert found["first playable"]["requests"] == found["/v1/audio/speech"]["requests"] > 0
    assert max(locust_run.history(tmp_path)["users"]) == 2


@pytest.mark.skipif(find_spec("locust") is None, reason="the extra `load` is not installed")
def test_a_stream_that_breaks_is_a_failure(tmp_path: Path) -> None:
    with served(Service(fail_at=5, frame_s=0.01, error=StageFailed("lost")).app) as url:
        status = locust_run.run(locust_run.Load(url, "steady", users=1, minutes=0.03), tmp_path)
    assert status == 1
    outcome = locust_run.outcome(tmp_path)
    found = {row["name"]: row for row in outcome["rows"]}
    assert found["/v1/audio/speech"]["failures"] == found["/v1/audio/speech"]["requests"] > 0
    assert "first playable" not in found
    faults = {fault["what"]: fault["times"] for fault in outcome["faults"]}
    assert sum(faults.values()) == found["/v1/audio/speech"]["failures"]
    assert all("broke: " in what for what in faults)
