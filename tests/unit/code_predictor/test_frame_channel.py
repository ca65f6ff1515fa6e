"""Both ends of the frame channel on one machine: who is let in, what is believed, what is lost."""

import contextlib
import math
import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.config import CodePredictorConfig
from serve_app.errors import StageFailed
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.client import RemoteFrames
from serve_app.models.code_predictor.channel.contract import (
    FrameBatch,
    FrameEndpoint,
    node_identity,
)
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.code_predictor.channel.server import FrameServer
from serve_app.models.code_predictor.channel.wire import FRAME, HEADER, HELLO, row_bytes, send
from serve_app.protocols import require
from tests.conftest import TinyCheckpoint
from tests.parity.channel import Listed, random_batch

MAX_ROWS = 4
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def local(tiny_checkpoint: TinyCheckpoint) -> InProcessFrames:
    config = CodePredictorConfig(batch_sizes=(1, MAX_ROWS))
    return InProcessFrames.load(open_checkpoint(tiny_checkpoint()), config, "cpu")


Serve = Callable[..., FrameServer]


@pytest.fixture
def serve(local: InProcessFrames) -> Iterator[Serve]:
    with ExitStack() as servers:

        def started(frames: object = local, **options: object) -> FrameServer:
            server = FrameServer(frames, **options)  # pyright: ignore[reportArgumentType]
            return servers.enter_context(server.serve())

        yield started


def batch_of(local: InProcessFrames, rows: int = 2, seed: int = 0) -> FrameBatch:
    return random_batch(rows, local.predictor.spec.talker_hidden_size, torch.float32, "cpu", seed)


def remote(*endpoints: FrameEndpoint, max_rows: int = MAX_ROWS) -> RemoteFrames:
    return RemoteFrames(Listed(*endpoints), max_rows=max_rows)


def connected(endpoint: FrameEndpoint, *, tcp: bool = False) -> socket.socket:
    if tcp:
        return socket.create_connection((endpoint.host, endpoint.port), PATIENCE_S)
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(PATIENCE_S)
    peer.connect(endpoint.unix_path)
    return peer


def admitted(endpoint: FrameEndpoint, **options: bool) -> socket.socket:
    """A peer that has shown the token and been answered."""
    peer = connected(endpoint, **options)
    send(peer, HELLO, 0, endpoint.token.encode())
    assert peer.recv(HEADER.size, socket.MSG_WAITALL)[:4] == HELLO.to_bytes(4, "little")
    assert peer.recv(64)
    return peer


def is_shut_out(peer: socket.socket) -> bool:
    try:
        return peer.recv(1) == b""
    except ConnectionResetError:  # what it sent was not even read
        return True
    finally:
        peer.close()


class Broken:
    """A predictor whose every launch fails, as after a fault of a CUDA device."""

    def __init__(self, local: InProcessFrames) -> None:
        self.predictor = local.predictor
        self.run = self
        self.max_batch = local.run.max_batch

    def __call__(self, *_: Tensor) -> Tensor:
        raise RuntimeError("device-side assert")


# --- the way in


def test_a_port_is_opened_for_talkers_on_other_nodes_only(serve: Serve) -> None:
    server = serve(host="127.0.0.1")
    assert server.endpoint().port == 0
    assert server.endpoint(node_identity()).port == 0
    port = server.endpoint("another node").port
    assert port > 0
    assert server.endpoint("a third node").port == port
    assert server.endpoint(node_identity()).port == port
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S):
        pass
    # Not on every interface: a loopback address that it was not given.
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), 5):
        pass


def test_the_socket_of_this_machine_is_for_this_user_only(serve: Serve) -> None:
    path = Path(serve().endpoint().unix_path)
    assert path.stat().st_mode & 0o077 == 0
    assert path.stat().st_uid == os.getuid()


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "tcp"])
@pytest.mark.parametrize("shown", ["", "0" * 32, "other than hexadecimal \u00fc"])
def test_who_does_not_show_the_token_is_shut_out(serve: Serve, shown: str, tcp: bool) -> None:
    endpoint = serve().endpoint("another node")
    peer = connected(endpoint, tcp=tcp)
    send(peer, HELLO, 0, shown.encode())
    assert is_shut_out(peer)


def test_who_asks_for_frames_first_is_shut_out(serve: Serve) -> None:
    endpoint = serve().endpoint()
    peer = connected(endpoint)
    send(peer, FRAME, 1, endpoint.token.encode())
    assert is_shut_out(peer)


def test_memory_handles_are_taken_from_this_user_only(serve: Serve) -> None:
    """They are pickled."""
    endpoint = serve().endpoint("another node")
    peer = connected(endpoint, tcp=True)
    send(peer, HELLO, 0, endpoint.token.encode(), b"cos\nsystem\n")
    assert is_shut_out(peer)


def test_who_says_nothing_is_let_go(serve: Serve) -> None:
    endpoint = serve(handshake_s=0.2).endpoint()
    assert is_shut_out(connected(endpoint))
    slow = connected(endpoint)
    slow.sendall(b"\0")
    assert is_shut_out(slow)


def test_connections_are_bounded_each_way(serve: Serve, local: InProcessFrames) -> None:
    # Not by the handshake, which would end it as well.
    server = serve(max_connections=2, handshake_s=3600)
    endpoint = server.endpoint("another node")
    held = [admitted(endpoint, tcp=True) for _ in range(2)]
    assert is_shut_out(connected(endpoint, tcp=True))
    here = remote(endpoint)
    assert torch.equal(here.predict(batch_of(local)), local.predict(batch_of(local)))
    for each in (*held, here):
        each.close()


def test_threads_do_not_outlive_their_connections(serve: Serve) -> None:
    server = serve()
    for _ in range(20):
        admitted(server.endpoint()).close()
    until_s = time.monotonic() + PATIENCE_S
    while len(server.threads) > 1 and time.monotonic() < until_s:
        time.sleep(0.01)
    assert len(server.threads) == 1  # who accepts
    assert server.stats()["talkers"] == 0


# --- what is believed


@pytest.mark.parametrize(
    ("rows", "length"),
    [(1, 512 << 20), (MAX_ROWS + 1, None), (0, 0), (1, 0), (2, 8)],
    ids=["huge", "too many rows", "no rows", "no payload", "half a payload"],
)
def test_a_message_of_another_length_ends_its_connection_only(
    serve: Serve, local: InProcessFrames, rows: int, length: int | None
) -> None:
    server = serve()
    length = rows * row_bytes(server.frames.like) if length is None else length
    peer = admitted(server.endpoint())
    peer.sendall(HEADER.pack(FRAME, rows, length) + bytes(min(length, 1 << 10)))
    assert is_shut_out(peer)
    require(server.health())
    client = remote(server.endpoint())
    assert torch.equal(client.predict(batch_of(local)), local.predict(batch_of(local)))
    client.close()


@pytest.mark.parametrize("code", [-1, 1 << 40])
def test_a_code_out_of_range_is_no_address(serve: Serve, local: InProcessFrames, code: int) -> None:
    server = serve()
    given = batch_of(local)
    client = remote(server.endpoint())
    codes = client.predict(replace(given, code_0=torch.full_like(given.code_0, code)))
    last = len(local.predictor.code_tables[0]) - 1
    nearest = replace(given, code_0=torch.full_like(given.code_0, min(max(code, 0), last)))
    assert torch.equal(codes, local.predict(nearest))
    client.close()


# --- what is lost


def test_a_predictor_that_fails_ends_and_its_talker_goes_elsewhere(
    serve: Serve, local: InProcessFrames
) -> None:
    reasons: list[str] = []
    broken = serve(Broken(local), on_death=reasons.append)
    healthy = serve()
    client = remote(broken.endpoint(), healthy.endpoint())
    assert torch.equal(client.predict(batch_of(local)), local.predict(batch_of(local)))
    assert len(reasons) == 1
    assert "device-side assert" in reasons[0]
    with pytest.raises(StageFailed, match="device-side assert"):
        require(broken.health())
    require(healthy.health())
    client.close()


class Hanging(Broken):
    """A predictor whose device does not come back from a frame until it is let."""

    def __init__(self, local: InProcessFrames) -> None:
        super().__init__(local)
        self.begun, self.let = threading.Event(), threading.Event()
        self._local = local

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.begun.set()
        assert self.let.wait(PATIENCE_S)
        return self._local.run(*inputs)


def test_a_frame_that_never_ends_ends_the_process(serve: Serve, local: InProcessFrames) -> None:
    deaths: list[str] = []
    hanging = Hanging(local)
    server = serve(hanging, on_death=deaths.append, stall_s=0.0)
    assert (server.health().state, server.health().progress_s) == ("works", None)
    client = remote(server.endpoint())
    caller = threading.Thread(target=client.predict, args=(batch_of(local),))
    caller.start()
    assert hanging.begun.wait(PATIENCE_S)
    with pytest.raises(StageFailed, match="has not ended"):
        require(server.health())
    assert "has not ended" in deaths[0]
    hanging.let.set()
    caller.join(PATIENCE_S)
    assert server.health().state == "works"
    assert server.health().progress_s is not None
    client.close()


def test_a_connection_that_cannot_be_accepted_keeps_no_other_out(
    serve: Serve, local: InProcessFrames
) -> None:
    """As where the process has no more files for a while."""
    server = serve()
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = remote(server.endpoint())
    early = connected(server.endpoint())
    lowest = early.fileno()
    early.close()
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, descriptors[1]))
        with contextlib.suppress(OSError):
            connected(server.endpoint()).close()
        time.sleep(0.3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, descriptors)
    assert torch.equal(client.predict(batch_of(local)), local.predict(batch_of(local)))
    client.close()


@pytest.mark.parametrize(
    ("kind", "rows", "answer"),
    [(3, 2, b"something went wrong"), (3, 2, bytes(60)), (FRAME, 1, b""), (FRAME, 1, bytes(60))],
)
def test_a_peer_that_answers_something_else_counts_as_lost(
    serve: Serve, local: InProcessFrames, tmp_path: Path, kind: int, rows: int, answer: bytes
) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()

    # Kept: who goes has been lost without any answer.
    peers: list[socket.socket] = []

    def confused() -> None:
        peer, _ = listener.accept()
        peers.append(peer)
        send(peer, HELLO, MAX_ROWS, b"torch.float32")
        send(peer, kind, rows, answer)

    thread = threading.Thread(target=confused, daemon=True)
    thread.start()
    good = serve().endpoint()
    bad = replace(good, unix_path=str(tmp_path / "s"), token="0" * 32)
    client = remote(bad, good)
    assert torch.equal(client.predict(batch_of(local)), local.predict(batch_of(local)))
    client.close()
    thread.join(PATIENCE_S)
    for each in (*peers, listener):
        each.close()


def test_a_predictor_in_another_container_is_reached_over_tcp(
    serve: Serve, local: InProcessFrames
) -> None:
    """It looks like one on this machine, and its socket lies in a folder of its own."""
    server = serve()

    class OfAnotherContainer(Listed):
        def connect(self, node: str) -> FrameEndpoint:
            self.nodes.append(node)
            return replace(server.endpoint(node), unix_path="/tmp/of-another-container.sock")

    sessions = OfAnotherContainer()
    client = RemoteFrames(sessions, max_rows=MAX_ROWS)
    assert torch.equal(client.predict(batch_of(local)), local.predict(batch_of(local)))
    assert client.transport == "tcp"
    assert sessions.nodes[0] == node_identity()
    # It is asked for as from elsewhere from then on.
    sessions.is_over = True
    client.predict(batch_of(local))
    assert node_identity() not in sessions.nodes[1:]
    assert client.reconnects == 0
    client.close()


def test_a_talker_moves_when_its_session_is_over(serve: Serve, local: InProcessFrames) -> None:
    first, second = serve(), serve()
    sessions = Listed(first.endpoint(), first.endpoint(), second.endpoint())
    client = RemoteFrames(sessions, max_rows=MAX_ROWS)
    client.predict(batch_of(local))
    for moved in (False, True):
        sessions.is_over = True
        assert torch.equal(client.predict(batch_of(local)), local.predict(batch_of(local)))
        assert client.reconnects == int(moved)
    assert (first.stats()["calls"], second.stats()["calls"]) == (2, 1)
    client.close()


def test_a_talker_of_more_rows_than_its_predictor_is_told(
    serve: Serve, local: InProcessFrames
) -> None:
    client = remote(serve().endpoint(), max_rows=MAX_ROWS + 1)
    with pytest.raises(StageFailed, match=r"up to 5 rows .* takes 4"):
        client.predict(batch_of(local))


def test_looking_for_a_predictor_is_told_from_a_hang(serve: Serve, local: InProcessFrames) -> None:
    server, found = serve(), threading.Event()

    class Slow(Listed):
        def connect(self, node: str) -> FrameEndpoint:
            assert found.wait(PATIENCE_S)
            return super().connect(node)

    client = RemoteFrames(Slow(server.endpoint()), max_rows=MAX_ROWS)
    assert client.reached_s == -math.inf
    caller = threading.Thread(target=client.predict, args=(batch_of(local),))
    caller.start()
    while client.reached_s == -math.inf:
        found.wait(0.01)
    assert client.reached_s == math.inf
    found.set()
    caller.join(PATIENCE_S)
    assert math.isfinite(client.reached_s)
    client.close()


def test_no_predictor_is_a_stage_failure() -> None:
    class Nobody(Listed):
        def connect(self, node: str) -> FrameEndpoint:
            raise ConnectionError("none is alive")

    client = RemoteFrames(Nobody())
    with pytest.raises(StageFailed, match="no code predictor"):
        client.predict(random_batch(1, 8, torch.float32, "cpu"))
