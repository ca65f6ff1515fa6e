"""How the commands that load a server of their own start it, where it does not come up."""

import argparse
import signal
import socket
from pathlib import Path

import pytest

from load_tests.servers.ready import ready_server
from load_tests.servers.server import ServerFailed
from load_tests.servers.settings import configured


def options(folder: Path, port: int) -> argparse.Namespace:
    return argparse.Namespace(port=port, env=[], ready_timeout=60.0, out=folder / "report")


def test_a_server_that_does_not_come_up_leaves_its_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configured("fused", [], None, None)
    config["applications"][0]["args"]["talker"] = {"max_num_seqs": 0}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(ServerFailed, match="the server ended"),
        ready_server(options(tmp_path, port), config),
    ):
        pytest.fail("it is not ready")
    assert "max_num_seqs" in (tmp_path / "report" / "server.log").read_text()
    said = "".join(capfd.readouterr())
    assert "the server ended" in said
    assert "max_num_seqs" in said
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_port_in_use_is_named_before_anything_is_started(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        args = options(tmp_path, other.getsockname()[1])
        with (
            pytest.raises(ServerFailed),
            ready_server(args, configured("fused", [], None, None)),
        ):
            pytest.fail("it is not ready")
    assert f"port {args.port} is in use; choose another: --port" in "".join(capfd.readouterr())
    assert not args.out.exists()
