"""The embedded default: a small English voice of our own, which lies in the package.

`training/` is how it was made; its model card is beside its weights. Finding it loads no torch.
"""

from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parents[1] / "embedded" / "small-english"


def embedded_checkpoint() -> Path:
    """Return its folder; nobody writes there."""
    return _FOLDER
