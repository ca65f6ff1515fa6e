"""One request over HTTP and everything that was seen of its answer.

What happens per received piece is a clock reading and an append: hundreds of streams share one
event loop with the clock that judges them. All times are of `time.perf_counter`, in seconds.
"""

import asyncio
import json
import socket
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, Literal, Self

import aiohttp
import numpy as np

from load_tests.loops.workload import SpeechCall

SPEECH_PATH: Final = "/v1/audio/speech"
BYTES_PER_SAMPLE: Final = 2
WAV_HEADER_BYTES: Final = 44
# 1 % of full scale, -40 dBFS: below it a listener hears nothing.
AUDIBLE_LEVEL: Final = 328
# Shorter than the time after which servers close an idle connection (uvicorn: 5 s), or a request
# would now and then meet one that is just being closed.
_KEEP_ALIVE_S: Final = 4.0

ErrorKind = Literal["", "status", "timeout", "connection", "truncated", "length", "left"]


@dataclass(frozen=True, slots=True)
class AudioShape:
    """Where the samples lie in a body.

    is_encoded: nowhere, for it is mp3 or the like. Its bytes count as the samples that were forced,
        in proportion; that none is missing is for tests to say.
    """

    sample_rate_hz: int = 24000
    samples_per_frame: int = 1920
    header_bytes: int = 0
    is_encoded: bool = False

    @property
    def first_playable_bytes(self) -> int:
        return self.header_bytes + BYTES_PER_SAMPLE * self.samples_per_frame


@dataclass(frozen=True, slots=True)
class Manner:
    """How a client reads an answer; by default all of it, as it comes.

    speed: seconds of audio taken per second, at most: 1 is a player without a buffer.
    stall_s: nothing is read for so long after the first piece.
    leave_after_s: it hangs up so long after sending, whatever has come.
    """

    speed: float | None = None
    stall_s: float = 0.0
    leave_after_s: float | None = None

    @property
    def is_self_paced(self) -> bool:
        """Whether the times of the pieces are the client's own doing."""
        return self.speed is not None or self.stall_s > 0


EAGER: Final = Manner()


@dataclass(frozen=True, slots=True)
class RequestResult:
    """One request as its client saw it; `*_at_s` are absolute, other times count from `sent_at_s`.

    arrivals: (seconds, bytes of the body received by then), one entry per piece read.
    error: what went wrong, "" if nothing did; `detail` says it in words. A request with an error
        stays in the sample.
    first_audible_sample: position of the first sample above AUDIBLE_LEVEL; None in a silent body.
    server_s: what parts of the way took until the first audio, by the server's own account.
    retry_after_s: when the server asked to be tried again; None if it did not.
    rests_s: what the client waited of its own will after each piece; empty where it never did.
    waited_s, refusals_s: of a client that asks again, when the last attempt was sent, and how soon
        each attempt was answered that the server had no room for.
    """

    index: int
    scheduled_at_s: float
    sent_at_s: float
    end_s: float
    status: int
    arrivals: tuple[tuple[float, int], ...]
    shape: AudioShape
    expected_samples: int | None
    first_audible_sample: int | None
    error: ErrorKind = ""
    detail: str = ""
    server_s: Mapping[str, float] = field(default_factory=dict)
    retry_after_s: float | None = None
    rests_s: tuple[float, ...] = ()
    waited_s: float = 0.0
    refusals_s: tuple[float, ...] = ()

    @property
    def ok(self) -> bool:
        return self.error == ""

    @property
    def lag_s(self) -> float:
        """How late the client itself was."""
        return self.sent_at_s - self.scheduled_at_s

    @property
    def num_bytes(self) -> int:
        return self.arrivals[-1][1] if self.arrivals else 0

    @property
    def samples(self) -> int:
        """Whole samples received."""
        return max(0, self.num_bytes - self.shape.header_bytes) // BYTES_PER_SAMPLE

    @property
    def audio_s(self) -> float:
        return self.samples / self.shape.sample_rate_hz

    @property
    def first_byte_s(self) -> float | None:
        return self.arrivals[0][0] if self.arrivals else None

    @property
    def first_playable_s(self) -> float | None:
        """When the first whole codec frame was there; None if it never was."""
        return self._received_s(self.shape.first_playable_bytes)

    @property
    def first_audible_s(self) -> float | None:
        """When the first audible sample was there; None if none was."""
        if self.first_audible_sample is None:
            return None
        through = BYTES_PER_SAMPLE * (self.first_audible_sample + 1)
        return self._received_s(self.shape.header_bytes + through)

    @property
    def leading_silence_s(self) -> float | None:
        if self.first_audible_sample is None:
            return None
        return self.first_audible_sample / self.shape.sample_rate_hz

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Times between two received pieces."""
        times = [at_s for at_s, _ in self.arrivals]
        return tuple(after - before for before, after in pairwise(times))

    def _received_s(self, num_bytes: int) -> float | None:
        return next((at_s for at_s, total in self.arrivals if total >= num_bytes), None)

    def bytes_before(self, at_s: float) -> int:
        """Bytes of the body received up to `at_s`, an absolute time."""
        position = bisect_right(self.arrivals, at_s - self.sent_at_s, key=lambda item: item[0])
        return self.arrivals[position - 1][1] if position else 0


class AudibleScan:
    """Finds the first sample above a level in a body that comes in pieces of any size."""

    def __init__(self, header_bytes: int, level: int = AUDIBLE_LEVEL) -> None:
        self._skip = header_bytes
        self._level = level
        self._rest = b""
        self._scanned = 0
        self.first_sample: int | None = None

    def feed(self, data: bytes) -> None:
        if self.first_sample is not None:
            return
        if self._skip:
            skipped = min(self._skip, len(data))
            data, self._skip = data[skipped:], self._skip - skipped
        data = self._rest + data
        whole = len(data) - len(data) % BYTES_PER_SAMPLE
        self._rest = data[whole:]
        # Wider than the samples: the magnitude of -32768 is no int16.
        loud = np.abs(np.frombuffer(data[:whole], "<i2").astype(np.int32)) > self._level
        if loud.any():
            self.first_sample = self._scanned + int(loud.argmax())
        self._scanned += len(loud)


class SpeechClient:
    """Sends requests to one server; an async context manager that holds its connections.

    Args:
        url: the server's root, without `/v1`.
        timeout_s: a request that takes longer in all has failed.
        buffer_bytes: what a connection may hold for a client that does not read, about; None: as
            much as libraries and system like, which is minutes of audio.
    """

    def __init__(
        self,
        url: str,
        shape: AudioShape,
        timeout_s: float = 60.0,
        api_key: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        buffer_bytes: int | None = None,
    ) -> None:
        self._url = url.rstrip("/") + SPEECH_PATH
        self._shape = shape
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._clock = clock
        self._buffer_bytes = buffer_bytes

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(
            limit=0,
            keepalive_timeout=_KEEP_ALIVE_S,
            socket_factory=None if self._buffer_bytes is None else self._small_socket,
        )
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers=self._headers,
            auto_decompress=False,
            read_bufsize=self._buffer_bytes or 1 << 20,
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()

    def _small_socket(self, address: Any) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._buffer_bytes or 0)
        return made

    async def speak(
        self,
        call: SpeechCall,
        scheduled_at_s: float | None = None,
        manner: Manner = EAGER,
        sink: bytearray | None = None,
    ) -> RequestResult:
        """Send `call` now and read its answer to the end; never raises for what the server does.

        What is received is appended to `sink`.
        """
        shape = self._shape
        scan = AudibleScan(shape.header_bytes)
        arrivals: list[tuple[float, int]] = []
        status, total = 0, 0
        error: ErrorKind = ""
        detail = ""
        server_s: Mapping[str, float] = {}
        retry_after_s: float | None = None
        rests_s: list[float] = []
        sent = self._clock()
        staying = asyncio.timeout(manner.leave_after_s)
        try:
            async with staying, self._http.post(self._url, data=call.body) as response:
                status = response.status
                retry_after_s = _seconds(response.headers.get("Retry-After"))
                if status != 200:
                    error, detail = "status", _message(await response.read(), status)
                else:
                    body = response.content
                    server_s = server_timings(response.headers.get("Server-Timing", ""))
                    while data := await body.readany():
                        total += len(data)
                        arrivals.append((self._clock() - sent, total))
                        if not shape.is_encoded:
                            scan.feed(data)
                        if sink is not None:
                            sink += data
                        if manner.is_self_paced:
                            before_s = self._clock()
                            await asyncio.sleep(self._rest_s(manner, sent, arrivals))
                            rests_s.append(self._clock() - before_s)
        except TimeoutError:
            if staying.expired():
                error, detail = "left", f"after {manner.leave_after_s:g} s"
            else:
                error, detail = "timeout", f"not complete after {self._timeout_s:g} s"
        except (aiohttp.ClientError, OSError) as broken:
            error = "truncated" if status == 200 else "connection"
            detail = f"{type(broken).__name__} after {total} bytes: {broken}"
        end_s = self._clock() - sent
        expected = None if call.num_frames is None else call.num_frames * shape.samples_per_frame
        if shape.is_encoded:
            arrivals = _as_samples(arrivals, expected or 0)
        elif not error:
            error, detail = _check_length(total, shape, expected)
        return RequestResult(
            index=call.index,
            scheduled_at_s=sent if scheduled_at_s is None else scheduled_at_s,
            sent_at_s=sent,
            end_s=end_s,
            status=status,
            arrivals=tuple(arrivals),
            shape=shape,
            expected_samples=expected,
            first_audible_sample=scan.first_sample,
            error=error,
            detail=detail,
            server_s=server_s,
            retry_after_s=retry_after_s,
            rests_s=tuple(rests_s),
        )

    def _rest_s(
        self, manner: Manner, sent_at_s: float, arrivals: Sequence[tuple[float, int]]
    ) -> float:
        """How long a client of this manner waits before it reads on."""
        if len(arrivals) == 1 and manner.stall_s:
            return manner.stall_s
        if manner.speed is None:
            return 0.0
        (first_at_s, _), (_, total) = arrivals[0], arrivals[-1]
        audio_s = total / (BYTES_PER_SAMPLE * self._shape.sample_rate_hz)
        return max(0.0, sent_at_s + first_at_s + audio_s / manner.speed - self._clock())

    async def get_json(self, path: str) -> dict[str, object] | None:
        """The answer to a GET of `path`; None where there is none."""
        url = self._url.removesuffix(SPEECH_PATH) + path
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=10)) as response:
                return await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def get_text(self, path: str) -> str:
        """The answer to a GET of `path`; "" where there is none, or an error."""
        url = self._url.removesuffix(SPEECH_PATH) + path
        try:
            async with self._http.get(url, timeout=aiohttp.ClientTimeout(total=10)) as response:
                return await response.text() if response.status == 200 else ""
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return ""


def server_timings(header: str) -> dict[str, float]:
    """Seconds by name, of a `Server-Timing` header; what has no duration is left out."""
    found: dict[str, float] = {}
    for entry in header.split(","):
        name, *parameters = (part.strip() for part in entry.split(";"))
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key == "dur":
                with suppress(ValueError):
                    found[name] = float(value) / 1000
    return found


def _seconds(header: str | None) -> float | None:
    """Of a Retry-After; None where there is none, or a date."""
    with suppress(TypeError, ValueError):
        return float(header)  # pyright: ignore[reportArgumentType]
    return None


def _as_samples(arrivals: Sequence[tuple[float, int]], samples: int) -> list[tuple[float, int]]:
    """Count an encoded body of `samples` in bytes of them: encoders keep to a bit rate, nearly."""
    total = arrivals[-1][1] if arrivals else 0
    return [(at_s, BYTES_PER_SAMPLE * (samples * done // total)) for at_s, done in arrivals]


def _check_length(total: int, shape: AudioShape, expected: int | None) -> tuple[ErrorKind, str]:
    """Compare the bytes of a body that ended cleanly with what it must have."""
    audio = max(0, total - shape.header_bytes)
    per_frame = BYTES_PER_SAMPLE * shape.samples_per_frame
    if not audio or audio % per_frame:
        return "length", f"{audio} bytes of audio are not whole frames of {per_frame}"
    if expected is not None and audio != expected * BYTES_PER_SAMPLE:
        return "length", f"{audio // BYTES_PER_SAMPLE} samples, {expected} expected"
    return "", ""


def _message(body: bytes, status: int) -> str:
    try:
        return f"{status}: {json.loads(body)['error']['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{status}: {body[:200]!r}"
