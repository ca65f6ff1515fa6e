"""Where a replica finds the checkpoint that its application serves."""

from pathlib import Path

from serve_app.config import AppConfig


def checkpoint_folder(config: AppConfig) -> Path:
    """Return the folder of the configured checkpoint, or of the embedded one.

    Each replica asks for itself: the nodes of a cluster need no shared storage, only the same
    configuration.
    """
    if config.model is not None:
        from serve_app.models.releases import locate

        return locate(config.model, config.revision)
    from serve_app.models.embedded import embedded_checkpoint

    return embedded_checkpoint()
