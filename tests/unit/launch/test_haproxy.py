"""What two servers on one machine must not share."""

from pathlib import Path

import pytest

from serve_app.launch.haproxy import environment


@pytest.mark.parametrize(("protocol", "usual"), [("HTTP", "8500"), ("GRPC", "9500")])
def test_a_server_has_a_fallback_proxy_of_its_own(
    tmp_path: Path, protocol: str, usual: str
) -> None:
    """Serve's listen to their ports together: each would answer half of the other's requests."""
    name = f"RAY_SERVE_FALLBACK_PROXY_{protocol}_PORT"
    first, second = (environment(tmp_path)[name] for _ in range(2))
    assert usual not in (first, second)
    assert first != second
