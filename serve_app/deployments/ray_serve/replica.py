"""What a replica has otherwise than Serve gives it."""

from serve_app.deployments.ray_serve import logs, port


def begin() -> None:
    """The first thing that the constructor of a deployment calls."""
    logs.join()
    port.narrow()
