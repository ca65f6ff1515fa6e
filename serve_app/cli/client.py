"""A client of OpenAI's speech API on the standard library, so that a command starts at once."""

import http.client
import json
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

_READ_BYTES: Final = 1 << 16
_RETRIES: Final = 2
_LONGEST_WAIT_S: Final = 20.0
_BUSY: Final = (429, 503)
_JSON: Final = "application/json"


class Refused(Exception):
    """The server answered with an error; the text is its own."""


class Unreachable(Exception):
    """No server answers at the address."""


class BrokenOff(Exception):
    """The answer ended before the speech did."""


class Client:
    """Calls of one server.

    Args:
        base_url: as OpenAI's clients take it, with or without the `/v1`.
        timeout_s: longest time without a byte.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float) -> None:
        if "://" not in base_url:
            base_url = f"http://{base_url}"
        try:
            self._url = urlsplit(base_url)
            is_right = self._url.scheme in ("http", "https") and bool(self._url.hostname)
            self._port = self._url.port
        except ValueError:
            is_right = False
        if not is_right:
            raise Unreachable(f"not an address of a server: {base_url}")
        self._path = self._url.path.rstrip("/") or "/v1"
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._timeout_s = timeout_s

    def list(self, path: str) -> list[Mapping[str, Any]]:
        """The entries of one of the server's lists."""
        try:
            return self.ask("GET", path)["data"]
        except (KeyError, TypeError) as error:
            raise Refused("the server answered with no list") from error

    def ask(self, method: str, path: str, fields: Mapping[str, Any] | None = None) -> Any:
        """What the server answers, as JSON; fields that are None are left out."""
        stated = {name: value for name, value in (fields or {}).items() if value is not None}
        body = None if fields is None else json.dumps(stated).encode()
        return as_json(self.fetch(method, path, body))

    def fetch(self, method: str, path: str, body: bytes | None = None, kind: str = _JSON) -> bytes:
        """What the server answers to a body of a content type.

        Raises:
            Refused, Unreachable, BrokenOff
        """
        with self._answer(method, path, body, kind) as response:
            try:
                return response.read()
            except (OSError, http.client.HTTPException) as error:
                raise BrokenOff(f"the answer broke off: {error}") from error

    @contextmanager
    def speech(
        self, body: Mapping[str, Any]
    ) -> Iterator[tuple[Mapping[str, str], Iterator[bytes]]]:
        """Headers and pieces of the audio, as they come.

        A server that is busy is asked again, as it tells or after a second. Leaving the context
        closes the connection, and with that ends the speech.

        Raises:
            Refused, Unreachable: before the first piece.
            BrokenOff: while the pieces come.
        """
        with self._answer("POST", "/audio/speech", json.dumps(body).encode()) as response:
            yield {name.lower(): value for name, value in response.getheaders()}, _pieces(response)

    @contextmanager
    def _answer(
        self, method: str, path: str, body: bytes | None = None, kind: str = _JSON
    ) -> Iterator[http.client.HTTPResponse]:
        for left in reversed(range(_RETRIES + 1)):
            with closing(self._connection()) as connection:
                response = self._exchange(connection, method, path, body, kind)
                if response.status < 300:
                    yield response
                    return
                if response.status not in _BUSY or not left:
                    raise Refused(_message(response))
                wait_s = _wait_s(response)
            time.sleep(wait_s)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._port
        if self._url.scheme == "https":
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=context)
        return http.client.HTTPConnection(host, port, timeout=self._timeout_s)

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None,
        kind: str,
    ) -> http.client.HTTPResponse:
        headers = {"Accept": "*/*", "Content-Type": kind, **self._headers}
        try:
            connection.connect()
            # The request is small and waited for.
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.request(method, self._path + path, body, headers)
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            where = f"{self._url.scheme}://{self._url.netloc}"
            raise Unreachable(f"no answer from {where}: {error or type(error).__name__}") from error


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    try:
        while piece := response.read1(_READ_BYTES):
            yield piece
        if response.length:  # of a stated length, which `read1` does not insist on
            raise http.client.IncompleteRead(b"", response.length)
    except (OSError, http.client.HTTPException) as error:
        raise BrokenOff(f"the speech broke off: {error or type(error).__name__}") from error


def as_json(data: bytes) -> Any:
    """What a server answered; Refused where it is something else."""
    try:
        return json.loads(data)
    except ValueError as error:
        raise Refused("the server answered with no JSON") from error


def _message(response: http.client.HTTPResponse) -> str:
    """OpenAI's error message where there is one, else the status."""
    try:
        return str(json.loads(response.read())["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError, http.client.HTTPException):
        return f"the server answered {response.status} {response.reason}"


def _wait_s(response: http.client.HTTPResponse) -> float:
    try:
        told_s = float(response.headers.get("retry-after-ms") or "") / 1000
    except ValueError:
        try:
            told_s = float(response.headers.get("retry-after") or "")
        except ValueError:
            told_s = 1.0
    return min(max(told_s, 0.0), _LONGEST_WAIT_S)
