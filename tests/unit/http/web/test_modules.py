"""The playground's modules that need no browser, under Node."""

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from serve_app.http.web.routes import STATIC

TESTS = Path(__file__).parent


def node() -> str | None:
    """The one that Playwright brings along, else the machine's."""
    playwright = find_spec("playwright")
    if playwright is not None and playwright.origin is not None:
        brought = Path(playwright.origin).parent / "driver" / "node"
        if brought.exists():
            return str(brought)
    return shutil.which("node")


@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.test.mjs")))
def test_modules_work_under_node(name: str, tmp_path: Path) -> None:
    program = node()
    if program is None:
        pytest.skip("no Node: pip install playwright brings one")
    # Node takes a folder's files for modules where its package says so; a browser needs no such.
    modules = tmp_path / "js"
    shutil.copytree(STATIC / "js", modules)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run(
        [program, "--test", "--test-reporter=tap", str(TESTS / name)],
        env={**os.environ, "MODULES": f"{modules.as_uri()}/"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
