"""The order in which workers get files of tests."""

from pathlib import Path

from tests import turns

ROOT = Path(__file__).parents[2]


def test_every_file_that_has_a_turn_is_there_once() -> None:
    files = [*turns.CLUSTERS, *turns.LONG]
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert len(files) == len(set(files))
