"""The Ray cluster that the launcher runs the application on: its own, unless told to join one."""

import logging
import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from serve_app.config import Environment
from serve_app.launch.ports import is_free, unreachable
from serve_app.storage.files import keep_from_cleaners

_NAMESPACE: Final = "serve"
# Ray's name for it comes from the systems where this is the default.
_ON_LOOPBACK: Final = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# By default Ray's workers, here the stages, give way to whatever else the machine does: behind a
# browser on a laptop, speech would stop.
_NICENESS: Final = ("RAY_worker_niceness", "0")
# Processes that Ray would start for tasks without an environment of their own. All of Serve's have
# one, so that nobody ever uses them; each takes 0.7 s of a core while Serve starts.
_NO_SPARE_WORKERS: Final = ("RAY_prestart_worker_first_driver", "0")
# By default Ray kills its workers while all programs together take more than 95 % of the memory, of
# which ours take no more later than at their start: for a browser it would end every stream.
_NO_MEMORY_WATCH: Final = ("RAY_memory_monitor_refresh_ms", "0")
# Nor are they the first that the kernel kills where there is none left, whoever has taken it.
_NO_SACRIFICE: Final = ("RAY_worker_oom_score_adjustment", "0")
# By what the processes of a cluster know each other; without it Ray has a file in the home.
_TOKEN: Final = "RAY_AUTH_TOKEN"
# Hosts that gRPC, between the replicas, asks for no proxy.
_PAST_PROXY: Final = "no_grpc_proxy"
_OWN_HOSTS: Final = "127.0.0.1,localhost"


def prepare_environment() -> None:
    """Have the Ray that this process is going to import keep to the loopback interface, give its
    workers their share of the processor and of the memory, start none that nobody uses, need no
    home that can be written to, and reach each other past the proxy that the environment may name.

    Not where RAY_ADDRESS names a cluster, whose nodes have to reach each other. With that one it
    speaks with a token where there is one: as `ray start` on this machine has it ask for, and
    `ray.init` does not show it. A cluster that asks for none takes no offence.
    """
    environment = Environment.read()
    if environment.ray_address is None:
        os.environ.update(_ON_LOOPBACK)
        os.environ.setdefault(*_NICENESS)
        os.environ.setdefault(*_NO_SPARE_WORKERS)
        os.environ.setdefault(*_NO_MEMORY_WATCH)
        os.environ.setdefault(*_NO_SACRIFICE)
        if not environment.ray_token and not _has_home():
            os.environ[_TOKEN] = secrets.token_hex(32)
        hosts = filter(None, (environment.past_proxy, _OWN_HOSTS))
        os.environ[_PAST_PROXY] = ",".join(hosts)
    elif environment.ray_token:
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _has_home() -> bool:
    """Whether Ray's file with a token can be made in the user's home."""
    try:
        home = Path.home()
    except RuntimeError:  # nobody knows of one
        return False
    folder = home / ".ray"
    place = folder if folder.exists() else home
    return place.is_dir() and os.access(place, os.W_OK)


def connect() -> None:
    """Connect this process to the cluster of RAY_ADDRESS, else to a new one on this machine.

    By itself, Ray would look for clusters that other programs have left word of. One of them may
    be dead, and is then waited for for minutes; another may be somebody else's.

    From then on SIGTERM, too, is a KeyboardInterrupt: Ray would have it abort the process, in the
    middle of what it does.

    Raises:
        ConnectionError: nothing answers at RAY_ADDRESS.
    """
    import ray

    address = Environment.read().ray_address
    if address is not None:
        reason = unreachable(address)  # which Ray would ask for most of a minute
        if reason is not None:
            raise ConnectionError(reason)
        ray.init(address=address, namespace=_NAMESPACE)
    else:
        with agent_port(), own_session():
            try:
                ray.init(address="local", namespace=_NAMESPACE)
            except SystemExit as told:  # how Ray answers SIGTERM meanwhile: with status 1
                raise KeyboardInterrupt from told
        # Sockets and settings, which whatever joins the cluster later still reads.
        keep_from_cleaners(Path(_node().get_session_dir_path()))
    signal.signal(signal.SIGTERM, interrupt)


def disconnect() -> None:
    """Leave the cluster for good; one of our own ends with all that runs on it.

    A thread that still asks Serve for something would start another, as Ray does for who has none,
    and else writes that it could not.
    """
    import ray
    from ray._private import auto_init_hook

    auto_init_hook.enable_auto_connect = False
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    ray.shutdown(wait_for_processes=True)


def lost(told: bool) -> str | None:
    """Why nothing of our own cluster can be ended in order any more, or None.

    Without a raylet no replica lives. Without a GCS streams go on until Ray aborts this process, a
    minute later, but nobody can be asked to finish them.

    Args:
        told: whether this process has been told to end.
    """
    node = _node()
    dead = {name for name, _ in node.dead_processes()} if node is not None else set()
    if "raylet" in dead:
        return "Ray's raylet has ended"
    return "Ray's GCS has ended" if told and "gcs_server" in dead else None


def _node() -> Any:
    """Ray's own word for what it has started here; None where it has not."""
    from ray._private import worker

    return worker._global_node


def interrupt(number: int, frame: object) -> NoReturn:
    """What a signal does that shall end this process as Ctrl-C does."""
    del number, frame
    raise KeyboardInterrupt


@contextmanager
def agent_port() -> Iterator[None]:
    """Have the agent of a node that is started inside listen to a free port.

    Beside another cluster it would try for 3.5 s to have that one's, while the node waits for it,
    and then do without. `ray start` has an option for this, `ray.init` none.
    """
    from ray._private import parameter, ray_constants

    usual: Any = parameter.RayParams
    if not is_free("127.0.0.1", ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT):
        parameter.RayParams = partial(usual, dashboard_agent_listen_port=0)  # type: ignore[misc]
    try:
        yield
    finally:
        parameter.RayParams = usual  # type: ignore[misc]


@contextmanager
def own_session() -> Iterator[None]:
    """Have the daemons of a node that is started inside be in sessions of their own.

    What a terminal, `timeout` or a script sends often goes to the whole process group. A launcher
    without its cluster could finish no stream, and would be aborted by Ray a minute later.
    """
    from ray._private import services

    usual: Any = services.ConsolePopen
    services.ConsolePopen = partial(usual, start_new_session=True)  # type: ignore[misc]
    try:
        yield
    finally:
        services.ConsolePopen = usual  # type: ignore[misc]
