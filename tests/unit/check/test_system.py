"""What of the system a server does not start without."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.check.finding import Finding
from serve_app.check.system import system
from tests.small_disk import small_disk

PROGRAM = """
from serve_app.check.system import system
print(*(f"{finding.state}: {finding.says}" for finding in system()), sep="\\n")
"""


def missing(found: list[Finding]) -> list[str]:
    return [finding.says for finding in found if finding.state == "missing"]


def of_shared_memory(place: Path) -> list[str]:
    return [says for says in missing(system(shm=place)) if "shared memory" in says]


def test_a_full_folder_for_temporary_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small", 40_000) as folder:
        monkeypatch.setenv("RAY_TMPDIR", str(folder))
        known = f"MiB free for temporary files in {folder}"
        assert [finding.state for finding in system() if known in finding.says] == ["note"]
        (folder / "log").write_bytes(bytes(20 << 20))
        (says,) = (says for says in missing(system()) if known in says)
        assert says == f"19 {known}, where the logs are"


def test_a_folder_for_temporary_files_that_is_none_or_has_too_long_a_name_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file" / "tmp"))
    assert any(f"{tmp_path}/file cannot be written to" in says for says in missing(system()))
    long = tmp_path / ("a" * 80)
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    assert f"{long} is too long for the paths of Ray's sockets" in missing(system())[-1]


def test_shared_memory_that_ray_would_use_and_cannot_is_named(tmp_path: Path) -> None:
    assert not any("shared memory" in says for says in missing(system(shm=tmp_path)))
    (says,) = missing(system(shm=tmp_path / "absent"))
    assert (
        says == f"there is no shared memory for Ray: {tmp_path}/absent: No such file or directory"
    )
    (tmp_path / "file").touch()
    assert any("Not a directory" in says for says in missing(system(shm=tmp_path / "file")))


@pytest.mark.parametrize("size_mib", [16, 128])
def test_shared_memory_that_cannot_be_written_to_keeps_ray_from_starting_where_it_is_large(
    tmp_path: Path, size_mib: int
) -> None:
    with small_disk(tmp_path / "shm", size_mib << 10) as shm:
        assert not of_shared_memory(shm)
        (shm / "full").write_bytes(bytes((size_mib << 20) - 4096))
        assert not of_shared_memory(shm)
        (shm / "full").unlink()
        subprocess.run(["mount", "-o", "remount,ro", str(shm)], check=True)
        said = f"shared memory cannot be written to, and Ray does: {shm}: Read-only file system"
        assert of_shared_memory(shm) == ([said] if size_mib == 128 else [])


@pytest.mark.parametrize("most", [256, 4096])
def test_a_low_limit_of_open_files_is_said_with_its_number(most: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, preexec_fn=limit)
    assert f"missing: {most} open files are allowed" in done.stdout


def test_a_container_that_may_have_few_threads_is_told(tmp_path: Path) -> None:
    (tmp_path / "pids.current").write_text("100\n")
    (tmp_path / "pids.max").write_text("max\n")
    assert not any("container" in says for says in missing(system(tmp_path)))
    (tmp_path / "pids.max").write_text("300\n")
    assert any("container may have 200 more threads" in says for says in missing(system(tmp_path)))


def test_names_of_files_that_python_would_not_read_are_told() -> None:
    ascii_only = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=ascii_only)
    assert "missing: Python takes names of files for ascii" in done.stdout
