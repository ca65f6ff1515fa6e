"""Where config files are: in the checkout, or in the installed package, which has a copy."""

from pathlib import Path
from typing import Final

PACKAGED: Final = Path(__file__).parents[1] / "configs"
_FOLDER: Final = Path("configs")


def located(name: str) -> Path:
    """The file that `name` means: itself, or the package's where there is none.

    Without a checkout `configs/serve.yaml` and `serve.yaml` both mean the package's.
    """
    given = Path(name)
    packaged = PACKAGED / given.name
    ours = given.parent in (Path(), _FOLDER) and packaged.exists()
    return packaged if ours and not given.exists() else given
