"""A machine with loudspeakers and a microphone."""

import pytest

# Notes what it is called with, and keeps what it is to play.
PLAYER = """#!/bin/sh
echo "$@" > "$HEARD.arguments"
exec cat > "$HEARD"
"""


@pytest.fixture
def player(tmp_path):
    """A folder with a program that "plays", and where it puts what it hears."""
    program = tmp_path / "bin" / "aplay"
    program.parent.mkdir()
    program.write_text(PLAYER)
    program.chmod(0o755)
    return program.parent, tmp_path / "heard"


# "Hears" for ever what is in a file, from its beginning on.
RECORDER = """#!/bin/sh
echo "$@" > "$SAID.arguments"
cat "$SAID"
exec cat /dev/zero
"""


@pytest.fixture
def microphone(tmp_path):
    """A folder with a program that "records", and the samples that it hears."""
    program = tmp_path / "bin" / "arecord"
    program.parent.mkdir(exist_ok=True)
    program.write_text(RECORDER)
    program.chmod(0o755)
    return program.parent, tmp_path / "said"
