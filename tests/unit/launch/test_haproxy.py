"""What two servers on one machine must not share."""

from pathlib import Path

from serve_app.launch.haproxy import environment


def test_a_server_has_a_fallback_proxy_of_its_own(tmp_path: Path) -> None:
    """Serve's listen to its port together: each would answer half of the other's requests."""
    name = "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"
    first, second = (environment(tmp_path)[name] for _ in range(2))
    assert "8500" not in (first, second)
    assert first != second
