"""Speech in each way that there is, which is under way while its server is told to end."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

CLIENT_S = 120.0
TEXT = "One, two, three: this is a test."
# More than is ever made.
ENDLESS_FRAMES = 1000
GOING_AWAY = 1001
# How long a session is listened to when its speech is over.
_REST_S = 2.0

Note = Callable[[], None]


@dataclass
class Heard:
    """What a client got.

    Attributes:
        errors: OpenAI's error codes, of messages and events.
        is_whole: whether the end of the speech was told.
        closed: the code that the WebSocket was closed with.
    """

    audio: bytes = b""
    errors: tuple[str, ...] = ()
    is_whole: bool = False
    closed: int | None = None


# `url`, frames of a unit, what to call when the first audio is there, what to call before the rest
# of the text is sent.
Client = Callable[[str, int, Note, Note], Heard]


def _body(frames: int, **fields: Any) -> dict[str, Any]:
    limits = {"min_new_tokens": frames, "max_new_tokens": frames}
    return {"input": TEXT, "voice": "emma", "seed": 7, "response_format": "pcm", **limits, **fields}


def pcm(url: str, frames: int, begun: Note, told: Note) -> Heard:
    heard = Heard()
    try:
        for piece in _pieces(url, _body(frames)):
            heard.audio += piece
            begun()
    except httpx.RemoteProtocolError:
        return heard
    heard.is_whole = True
    return heard


def sse(url: str, frames: int, begun: Note, told: Note) -> Heard:
    heard, data = Heard(), b""
    try:
        for piece in _pieces(url, _body(frames, seed=8, stream_format="sse")):
            data += piece
            begun()
    except httpx.RemoteProtocolError:
        pass
    for line in data.decode().splitlines():
        if line.startswith("data: "):
            _note(heard, json.loads(line[6:]))
    return heard


def _pieces(url: str, body: dict[str, Any]) -> Iterator[bytes]:
    with httpx.stream("POST", f"{url}/v1/audio/speech", json=body, timeout=CLIENT_S) as answer:
        answer.raise_for_status()
        yield from answer.iter_raw()


def file(url: str, frames: int, begun: Note, told: Note) -> Heard:
    """One that comes when all of it is made."""
    threading.Timer(0.3, begun).start()
    body = _body(frames, seed=9, stream=False)
    answer = httpx.post(f"{url}/v1/audio/speech", json=body, timeout=CLIENT_S)
    return Heard(answer.raise_for_status().content, is_whole=True)


def live(url: str, frames: int, begun: Note, told: Note) -> Heard:
    """Text in pieces, the last of which come when the server has been told."""
    heard = Heard()
    limits = {"min_new_tokens": frames, "max_new_tokens": frames}
    with connect(_websocket(url, "/v1/audio/speech/stream")) as socket:
        settings = {"voice": "emma", "response_format": "pcm", "seed": 10, **limits}
        _send(socket, "session.config", **settings)
        _send(socket, "input.text", text="As far as I know, this is so. And ")
        _read(socket, heard, "audio.start")
        begun()
        told()
        _send(socket, "input.text", text="that is so as well.")
        _send(socket, "input.done")
        _read(socket, heard, "session.done")
        _read(socket, heard, "a close", _REST_S)
    return heard


def unended(url: str, frames: int, begun: Note, told: Note) -> Heard:
    """Text in pieces that never has its end; what has come is spoken soon."""
    heard = Heard()
    with connect(_websocket(url, "/v1/audio/speech/stream")) as socket:
        _send(socket, "session.config", voice="emma", response_format="pcm", max_new_tokens=4)
        _send(socket, "input.text", text="As far as I know, this is so. And ")
        _read(socket, heard, "audio.start")
        begun()
        _read(socket, heard, "session.done")
    return heard


def realtime(url: str, frames: int, begun: Note, told: Note) -> Heard:
    """As long as it likes to be; there is no seed in it."""
    heard = Heard()
    content = [{"type": "input_text", "text": f"{TEXT} {TEXT}"}]
    item = {"type": "message", "role": "user", "content": content}
    with connect(_websocket(url, "/v1/realtime")) as socket:
        _send(socket, "response.create", response={"conversation": "none", "input": [item]})
        _read(socket, heard, "response.output_audio.delta")
        begun()
        _read(socket, heard, "response.done")
        _read(socket, heard, "a close", _REST_S)
    return heard


def _websocket(url: str, path: str) -> str:
    return url.replace("http", "ws", 1) + path


def _send(socket: ClientConnection, kind: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": kind, **fields}))


def _read(socket: ClientConnection, heard: Heard, kind: str, within_s: float = CLIENT_S) -> None:
    """Until a message of this kind, the server's end of the connection, or silence."""
    while heard.closed is None:
        try:
            raw = socket.recv(timeout=within_s)
        except TimeoutError:
            return
        except ConnectionClosed as closed:
            heard.closed = closed.rcvd.code if closed.rcvd is not None else -1
            return
        if isinstance(raw, bytes):
            heard.audio += raw
            continue
        message = json.loads(raw)
        _note(heard, message)
        if message["type"] == kind:
            return


def _note(heard: Heard, message: dict[str, Any]) -> None:
    match message["type"]:
        case "error":
            heard.errors += (message["error"]["code"],)
        case "speech.audio.delta":
            heard.audio += base64.b64decode(message["audio"])
        case "response.output_audio.delta":
            heard.audio += base64.b64decode(message["delta"])
        case "speech.audio.done":
            heard.is_whole = True
        case "session.done":
            heard.is_whole = not message.get("error")
        case "response.done":
            heard.is_whole = message["response"]["status"] in ("completed", "incomplete")


class Open:
    """Clients that run side by side; a context, which is entered when all have audio."""

    def __init__(self, url: str, frames: int, *clients: Client) -> None:
        self._url = url
        self._frames = frames
        self._heard: dict[str, Heard] = {}
        self._failures: list[BaseException] = []
        self._begun = {client: threading.Event() for client in clients}
        self._told = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=[c], daemon=True) for c in clients]

    def __enter__(self) -> "Open":
        for thread in self._threads:
            thread.start()
        for client, begun in self._begun.items():
            assert begun.wait(CLIENT_S), client
        assert not self._failures, self._failures
        return self

    def __exit__(self, *_: object) -> None:
        self._told.set()

    def tell(self) -> None:
        """The server has been told."""
        self._told.set()

    def heard(self) -> dict[str, Heard]:
        """What each got, when all are over."""
        for thread in self._threads:
            thread.join(CLIENT_S)
            assert not thread.is_alive()
        assert not self._failures, self._failures
        return self._heard

    def _run(self, client: Client) -> None:
        begun = self._begun[client]
        try:
            found = client(self._url, self._frames, begun.set, self._wait)
            self._heard[client.__name__] = found
        except BaseException as error:
            self._failures.append(error)
            begun.set()

    def _wait(self) -> None:
        assert self._told.wait(CLIENT_S)
