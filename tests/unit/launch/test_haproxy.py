"""What two servers on one machine must not share."""

import subprocess
from pathlib import Path

import pytest

from serve_app.launch.haproxy import environment, is_loopback


@pytest.mark.parametrize(("protocol", "usual"), [("HTTP", "8500"), ("GRPC", "9500")])
def test_a_server_has_a_fallback_proxy_of_its_own(
    tmp_path: Path, protocol: str, usual: str
) -> None:
    """Serve's listen to their ports together: each would answer half of the other's requests."""
    name = f"RAY_SERVE_FALLBACK_PROXY_{protocol}_PORT"
    first, second = (environment(tmp_path)[name] for _ in range(2))
    assert usual not in (first, second)
    assert first != second


def test_statistics_are_for_this_machine_and_requests_take_no_longer_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "real"
    binary.write_text("#!/bin/sh\necho $@")
    binary.chmod(0o755)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(binary))
    settings = environment(tmp_path)
    port = settings["RAY_SERVE_HAPROXY_STATS_PORT"]
    (tmp_path / "node").mkdir()
    file = tmp_path / "node" / "haproxy.cfg"
    file.write_text(f"    timeout http-keep-alive 130s\n    bind *:{port}\n    bind *:8000\n")
    program = settings["RAY_SERVE_HAPROXY_BINARY_PATH"]
    done = subprocess.run([program, "-f", "x"], capture_output=True, text=True, check=True)
    assert done.stdout == "-f x\n"
    assert file.read_text().split("\n") == [
        "    timeout http-keep-alive 130s",
        "    timeout http-request 30s",
        f"    bind 127.0.0.1:{port}",
        "    bind *:8000",
        "",
    ]


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a", False)],
)
def test_only_this_machine_reaches_its_loopback_interface(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
