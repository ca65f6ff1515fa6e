"""The metrics of all nodes, whatever one of them answers."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from serve_app.deployments import agents

GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\ntts 1\n"
BAD = (
    b"what?\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\ntts",
    b"HTTP/1.1 500 No\r\n\r\n",
    b"",
)


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of an agent that says this to whoever asks."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=20)


def test_an_agent_that_answers_nonsense_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(answering(answer)) for answer in (*BAD, GOOD)]
        nodes = [
            {"Alive": True, "MetricsExportPort": port, "NodeManagerAddress": "127.0.0.1"}
            for port in ports
        ]
        monkeypatch.setattr(agents.ray, "nodes", lambda: nodes)
        assert asyncio.run(agents.Agents().texts()) == ["tts 1\n"]
