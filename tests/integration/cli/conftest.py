"""A machine with loudspeakers."""

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
