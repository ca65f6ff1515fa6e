"""Servers that are killed while they write."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from serve_app.storage.objects import storage_at
from serve_app.voices.library import Library

REPOSITORY = Path(__file__).parents[3]


def test_servers_that_are_killed_leave_whole_voices_and_all_they_promised(
    tmp_path,
):
    place = str(tmp_path / "voices")
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.unit.voices.writing", place, prefix],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        for prefix in ("one", "two")
    ]
    promised = [writer.stdout.readline() for writer in writers for _ in range(5)]
    for writer in writers:
        writer.kill()
        promised += writer.stdout.readlines()
        writer.wait()

    async def main():
        library = Library(storage_at(place, {}))
        found = (await library.now()).voices
        assert {line.strip() for line in promised if line.endswith("\n")} <= found.keys()
        # At most the one of each that was being promised.
        assert len(found) <= len(promised) + 2
        for voice in found.values():
            assert await library.recording(voice) == bytes(200_000)

    asyncio.run(main())
