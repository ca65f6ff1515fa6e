"""What the launcher tells the Ray that it starts."""

import os
import socket
from pathlib import Path

import pytest
from ray._private import parameter, ray_constants

from serve_app.launch.cluster import agent_port, prepare_environment

NICENESS = "RAY_worker_niceness"
SPARE = "RAY_prestart_worker_first_driver"
MEMORY_WATCH = "RAY_memory_monitor_refresh_ms"
SACRIFICE = "RAY_worker_oom_score_adjustment"
AUTH = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
PAST_PROXY = "no_grpc_proxy"
TOKENS = (TOKEN, "RAY_AUTH_TOKEN_PATH")
NAMES = (
    *(
        "RAY_ADDRESS",
        NICENESS,
        SPARE,
        MEMORY_WATCH,
        SACRIFICE,
        AUTH,
        *TOKENS,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    ),
    *(PAST_PROXY, "no_proxy", "NO_PROXY"),
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is put back afterwards
        monkeypatch.delenv(name)
    return monkeypatch


def test_stages_of_an_own_cluster_do_not_give_way_to_other_programs(environment) -> None:
    prepare_environment()
    assert os.environ[NICENESS] == "0"
    assert os.environ[SPARE] == "0"
    assert os.environ[MEMORY_WATCH] == "0"
    assert os.environ[SACRIFICE] == "0"


def test_a_niceness_that_was_asked_for_stays(environment) -> None:
    environment.setenv(NICENESS, "7")
    prepare_environment()
    assert os.environ[NICENESS] == "7"


@pytest.mark.parametrize(
    ("stated", "hosts"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "intern"}, "intern,127.0.0.1,localhost"),
        ({"no_grpc_proxy": "a,b", "no_proxy": "c"}, "a,b,127.0.0.1,localhost"),
    ],
)
def test_replicas_ask_no_proxy_for_each_other(environment, stated, hosts) -> None:
    for name, value in stated.items():
        environment.setenv(name, value)
    prepare_environment()
    assert os.environ[PAST_PROXY] == hosts


def test_without_a_home_the_cluster_has_its_token_from_the_environment(
    environment, tmp_path: Path
) -> None:
    environment.setenv("HOME", str(tmp_path))
    prepare_environment()
    assert TOKEN not in os.environ  # Ray's file is made there
    file = tmp_path / "file"
    file.touch()
    environment.setenv("HOME", str(file))  # nor can root make a folder in it
    prepare_environment()
    token = os.environ[TOKEN]
    assert len(token) == 64
    prepare_environment()
    assert os.environ[TOKEN] == token


def test_a_cluster_that_is_joined_is_left_as_it_is(environment) -> None:
    environment.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    environment.setenv("HOME", "/dev/null")
    prepare_environment()
    assert TOKEN not in os.environ
    assert NICENESS not in os.environ
    assert SPARE not in os.environ
    assert MEMORY_WATCH not in os.environ
    assert SACRIFICE not in os.environ


def test_a_cluster_is_joined_with_the_token_that_there_is(environment, tmp_path) -> None:
    environment.setenv("HOME", str(tmp_path))
    prepare_environment()
    environment.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    prepare_environment()
    assert AUTH not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    prepare_environment()
    assert os.environ[AUTH] == "token"
    environment.setenv(AUTH, "disabled")
    prepare_environment()
    assert os.environ[AUTH] == "disabled"


def test_a_node_beside_another_cluster_has_an_agent_port_of_its_own() -> None:
    usual = ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", usual))
            other.listen()
        except OSError:  # a cluster of this machine has it
            pass
        with agent_port():
            # 0: the agent takes any, and the node tells which.
            assert parameter.RayParams().dashboard_agent_listen_port == 0
    assert parameter.RayParams().dashboard_agent_listen_port == usual
