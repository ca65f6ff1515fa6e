"""What the terminal says of a server that starts, and what a service manager hears."""

import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from serve_app.launch.announce import (
    NOTIFY_SOCKET,
    READY,
    STOPPING,
    Failure,
    ServiceManager,
    say_when_ready,
)


@contextmanager
def answering(answers: list[tuple[int, bytes]], other: bytes) -> Iterator[int]:
    """A server whose `/ready` gives one of `answers` after the other, the last one for good, and
    which answers all else with `other`.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = 200, other
            if self.path == "/ready":
                status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


def not_ready(reason: object) -> tuple[int, bytes]:
    return 503, json.dumps({"ready": False, "reason": reason}).encode()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_each_reason_is_said_once_and_then_where_the_server_is(host: str) -> None:
    answers = [
        (404, b"Path '/ready' not found."),
        (503, b"[]"),
        not_ready("stages"),
        not_ready("stages"),
        not_ready(None),
        not_ready("synthesis"),
        not_ready("stages"),
        (200, b'{"ready": true}'),
    ]
    said: list[str] = []
    asked: list[Failure | None] = [Failure("no such model"), None]

    def failing() -> Failure | None:
        return asked.pop(0)  # IndexError in the end, as Serve has errors of its own

    with answering(answers, b'{"note": "A small voice.", "playground": "/web/"}') as port:
        ready = partial(said.append, "is ready")
        thread = say_when_ready(
            host, port, failing, ready=ready, say=said.append, look_every_s=0.001
        )
        thread.join(60)
        assert not thread.is_alive()
    waits = ["no such model", "stages", "synthesis"]
    assert said[:3] == [f"not ready yet: {reason}" for reason in waits]
    assert said[3] == "is ready"
    assert said[4].startswith("ready after ")
    assert f"http://127.0.0.1:{port}/web/" in said[4]
    assert said[4].endswith("\nA small voice.")
    assert not said[5:]


def test_a_server_that_will_never_serve_is_given_up() -> None:
    said: list[str] = []
    asked = iter([None, Failure("one of two", is_final=False), Failure("the other", is_final=True)])
    with answering([not_ready("stages")], b"{}") as port:
        give_up = partial(said.append, "given up")
        thread = say_when_ready(
            "127.0.0.1",
            port,
            lambda: next(asked),
            give_up,
            ready=partial(said.append, "is ready"),
            say=said.append,
            look_every_s=0.001,
        )
        thread.join(60)
        assert not thread.is_alive()
    assert said == ["not ready yet: stages", "not ready yet: one of two", "the other", "given up"]


@pytest.mark.parametrize("other", [b"{}", b"[]", b"none", b'{"note": null}'])
def test_a_server_with_nothing_more_to_say_is_ready_all_the_same(other: bytes) -> None:
    said: list[str] = []
    with answering([(200, b"")], other) as port:
        say_when_ready("127.0.0.1", port, say=said.append).join(60)
    assert [text.partition(": ")[2] for text in said] == [f"http://127.0.0.1:{port}/v1"]


@pytest.mark.parametrize("is_abstract", [False, True])
def test_each_state_is_a_message_of_its_own(
    is_abstract: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@{uuid.uuid4().hex}" if is_abstract else str(tmp_path / "notify")
    monkeypatch.setenv(NOTIFY_SOCKET, name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name.replace("@", "\0") if is_abstract else name)
        heard.settimeout(10)
        manager = ServiceManager(name)
        manager.status("not ready yet: stages\nand more")
        manager.tell(READY)
        manager.tell(STOPPING)
        assert [heard.recv(100) for _ in range(3)] == [
            b"STATUS=not ready yet: stages",
            b"READY=1",
            b"STOPPING=1",
        ]
    assert NOTIFY_SOCKET not in os.environ  # Ray's processes say nothing


def test_a_manager_that_is_away_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ServiceManager(None).tell(READY)
    assert not caplog.records
    ServiceManager(str(tmp_path / "none")).tell(READY)
    assert READY in caplog.text
