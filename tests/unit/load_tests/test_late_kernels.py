"""Kernels that were compiled after ready, as load tests read them from a server's logs."""

from pathlib import Path
from typing import Any, cast

import pytest

from load_tests.curve.compose import compose
from load_tests.curve.measure import row_of
from load_tests.loops.runner import ClosedLoop, Run
from load_tests.reports import files
from load_tests.servers.late_kernels import late_kernels_of, late_text, of_log
from load_tests.servers.measured import Start
from load_tests.servers.server import Server
from serve_app.models.late_kernels import LateKernels, logger
from tests.unit.load_tests.values import result


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> str:
    """What a stage says of one."""
    LateKernels()._note("_sampling_kernel")  # pyright: ignore[reportPrivateUsage]
    (message,) = caplog.messages
    return message


def test_each_is_found_once_whoever_said_it(tmp_path: Path, said: str) -> None:
    of_serve = f"WARNING 2026-11-26 18:00:00,123 tts_Talker x7k2 -- {said}\n"
    of_child = f"2026-11-26 18:00:00,123 {logger.name} -- {said}\n"
    logs = tmp_path / "ray" / "session_latest" / "logs"
    (logs / "serve").mkdir(parents=True)
    of_talker = logs / "serve" / "replica_tts_Talker_x7k2.log"
    of_talker.write_text(f"INFO before\n{of_serve}INFO after\n")
    # A replica says it twice: what it writes to standard error is no other kernel.
    (logs / "worker-1.err").write_text(of_serve)
    (logs / "worker-2.err").write_text(2 * of_child)
    (tmp_path / "server.log").write_text(f"(Replica) {of_serve}(Replica) {of_child}")
    server = Server(cast("Any", None), "", tmp_path, 0.0, "")
    assert late_kernels_of(server) == 3 * ["_sampling_kernel"]
    assert not list(of_log("controller_1.log", of_serve))


def test_a_start_says_whether_there_were_any() -> None:
    assert Start("now", ready_s=25.0).text() == "ready after 25.0 s"
    none = Start("now", ready_s=25.0, late_kernels=[])
    assert none.text() == "ready after 25.0 s; no kernel was compiled after ready"
    some = late_text(["a", "b", "a"])
    assert some == "**3 kernels were compiled after ready**: a 2 times, b"


def test_the_report_of_a_curve_says_after_which_load(tmp_path: Path) -> None:
    run = Run(ClosedLoop(1, 1), results=[result()])
    row = files.to_json(row_of("fused", 1, "closed, 64 per GPU", run))  # as it is stored
    gpus = [{"name": "H200"}]
    facts = {"gpus": gpus, "cpus": 2, "commit": "abc", "time_utc": "now"}

    def report(*late: list[str]) -> str:
        rows = [{**row, "late_kernels": each} for each in late]
        compose(tmp_path, {"facts": facts, "rows": rows or [row]})
        return (tmp_path / "report.md").read_text()

    assert "compiled" not in report()
    assert "- no kernel was compiled after ready\n" in report([], [])
    text = report([], ["k"])
    assert (
        "- fused, 1 GPUs, closed, 64 per GPU: **1 kernels were compiled after ready**: k\n" in text
    )
    assert "no kernel" not in text
