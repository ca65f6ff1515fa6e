"""What pyproject.toml says of the package and of those who work on it."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
# How a distribution is called that is imported by another name.
IMPORTED_AS = {"pyyaml": "yaml", "opentelemetry-sdk": "opentelemetry"}


def requirements(*extras: str) -> set[str]:
    """Import names of what the extras ask for, and of what the package does."""
    project = PROJECT["project"]
    listed = [*project["dependencies"]]
    for extra in extras:
        listed += project["optional-dependencies"][extra]
    names = {re.split(r"[^\w-]", line)[0].lower() for line in listed}
    return {IMPORTED_AS.get(name, name).replace("-", "_") for name in names}


def imported(folder: Path) -> Iterator[tuple[str, str]]:
    """Top-level packages that modules import, each with its file."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], path.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield node.module.split(".")[0], path.name


def test_the_wheel_has_every_file_that_is_no_module() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["serve_app"]
    package = ROOT / "serve_app"
    packed = {
        package / name for each in patterns for name in glob(each, root_dir=package, recursive=True)
    }
    listed = subprocess.run(
        ["git", "ls-files", "serve_app"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    others = {ROOT / name for name in listed if not name.endswith((".py", ".md"))}
    others = {path for path in others if path.is_file()}
    assert others <= packed, "named in no package-data of pyproject.toml"


def test_contributing_names_files_that_are_there() -> None:
    """One place for each change: a stranger looks there first."""
    table = [
        line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line[:1] == "|"
    ]
    named = {name for line in table for name in re.findall(r"`([\w/]+(?:/|\.py|\.toml))`", line)}
    assert len(named) > 20
    files = [f"/{path.relative_to(ROOT)}" for path in ROOT.rglob("*") if ".git" not in path.parts]
    missing = {name for name in named if not any(f.endswith(f"/{name.rstrip('/')}") for f in files)}
    assert not missing


def test_what_the_http_tests_import_is_asked_for() -> None:
    """Not something that comes with another package by luck."""
    asked = requirements("dev", "load") | set(sys.stdlib_module_names)
    ours = {"serve_app", "tests", "load_tests"}
    found = {
        (name, file)
        for folder in ("tests/integration/http", "tests/unit/http")
        for name, file in imported(ROOT / folder)
    }
    assert {(name, file) for name, file in found if name not in asked | ours} == set()


def test_every_extra_is_explained_and_who_needs_none_imports_none() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    rows = "\n".join(line for line in page.splitlines() if line.startswith("| `"))
    extras = PROJECT["project"]["optional-dependencies"].keys() - {"cpu", "gpu"}
    assert {extra for extra in extras if f"`{extra}`" not in rows} == set()
    assert "flash_attn" not in {name for name, _ in imported(ROOT / "serve_app")}
