"""What the launcher tells the Ray that it starts."""

import os

import pytest

from serve_app.launch.cluster import prepare_environment

NICENESS = "RAY_worker_niceness"
NAMES = ("RAY_ADDRESS", NICENESS, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return monkeypatch


def test_stages_of_an_own_cluster_do_not_give_way_to_other_programs(environment) -> None:
    prepare_environment()
    assert os.environ[NICENESS] == "0"


def test_a_niceness_that_was_asked_for_stays(environment) -> None:
    environment.setenv(NICENESS, "7")
    prepare_environment()
    assert os.environ[NICENESS] == "7"


def test_a_cluster_that_is_joined_is_left_as_it_is(environment) -> None:
    environment.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    prepare_environment()
    assert NICENESS not in os.environ
