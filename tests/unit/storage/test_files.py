"""Folders of files that others would tidy away."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A process that keeps a folder until its input ends.
KEEPER = """
import sys
from pathlib import Path
from serve_app.storage.files import keep_from_cleaners
keep_from_cleaners(Path(sys.argv[1]))
print("kept", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd's cleaner")
def test_what_clears_old_files_leaves_those_of_a_process_that_lives(tmp_path: Path) -> None:
    kept, others = tmp_path / "aged" / "kept", tmp_path / "aged" / "others"
    files = [folder / "logs" / "file" for folder in (kept, others)]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    config = tmp_path / "aged.conf"
    config.write_text(f"d {tmp_path}/aged - - - 1s\n")

    def clean() -> list[bool]:
        time.sleep(1.1)
        environment = {**os.environ, "SYSTEMD_LOG_LEVEL": "err"}
        subprocess.run(["systemd-tmpfiles", "--clean", config], check=True, env=environment)
        return [file.exists() for file in files]

    process = subprocess.Popen(
        [sys.executable, "-c", KEEPER, str(kept)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"kept\n"
        assert clean() == [True, False]
    finally:
        process.communicate()
    assert clean() == [False, False]
