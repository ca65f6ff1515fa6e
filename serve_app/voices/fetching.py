"""Fetches a recording from a URL that a client names: from hosts that the operator allows, only.

One parser reads the URL for the check and for the request. The host is looked up once, every
address that it has must be a public one, and the connection goes to an address that was checked.
There are no redirects, no proxies, no cookies and no compression; size, time and how many are
fetched at once are bounded.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from serve_app import __version__
from serve_app.errors import InvalidRequest, Overloaded

Resolve = Callable[[str], Awaitable[Sequence[str]]]
Accepts = Callable[[str], bool]

_TIMEOUT_S: Final = 15.0
_CONNECT_S: Final = 5.0
_PORT: Final = 443
# Each is held in memory, and what names it takes only a few bytes.
_AT_ONCE: Final = 16
_MAX_URL_CHARS: Final = 2048
# What a host name may look like; no address in numbers, no user, no port, nothing to be read in two
# ways.
_HOST: Final = re.compile(
    r"(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9-]+)*\.[a-z]{2,63}"
)
# Addresses of the old internet within the new one's.
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_PATH: Final = re.compile(r"[!-~]*")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo[1] if found.teredo else None)
        if inner is not None or found in _NAT64:
            return False
    return found.is_global and not found.is_multicast


async def look_up(host: str) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, _PORT, type=socket.SOCK_STREAM)
    return [str(entry[4][0]) for entry in found]


class Fetcher:
    """
    Args:
        hosts: from which recordings may be fetched, exactly as they are named; none: from nowhere.
        max_bytes: of a recording.
        resolve, accepts, context, port: how a host is found, which addresses will do, and how it
            shows who it is.
    """

    def __init__(
        self,
        hosts: Collection[str],
        max_bytes: int,
        resolve: Resolve = look_up,
        accepts: Accepts = is_public,
        context: ssl.SSLContext | None = None,
        port: int = _PORT,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._hosts = frozenset(host.strip().lower() for host in hosts)
        self._max_bytes = max_bytes
        self._resolve = resolve
        self._accepts = accepts
        self._context = context
        self._port = port
        self._timeout_s = timeout_s
        self._running = 0

    async def fetch(self, url: str, param: str) -> bytes:
        """What is at `url`.

        Raises:
            InvalidRequest: it is not allowed, or could not be fetched.
            Overloaded: too many are being fetched.
        """
        host, target = self._checked(url, param)
        if self._running >= _AT_ONCE:
            raise Overloaded("Too many recordings are being fetched at the moment.")
        self._running += 1
        try:
            return await self._fetched(host, target, param)
        finally:
            self._running -= 1

    async def _fetched(self, host: str, target: str, param: str) -> bytes:
        timer = asyncio.timeout(self._timeout_s)
        try:
            async with timer:
                address = await self._address(host, param)
                return await self._get(host, address, target, param)
        except TimeoutError as error:
            raise _failed(param, f"did not come within {self._timeout_s:g} s") from error
        except (OSError, aiohttp.ClientError) as error:
            raise _failed(param, "could not be fetched") from error

    def _checked(self, url: str, param: str) -> tuple[str, str]:
        """The host, and path and query as they are asked for."""
        if not self._hosts:
            raise _refused(
                param, "URLs are switched off here: send the recording itself, in base64"
            )
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _refused(param, "this is no URL") from error
        # What is before the path, letter by letter: nothing there may be read in two ways.
        authority = parts.netloc.lower()
        if len(url) > _MAX_URL_CHARS or "\\" in url or not _PATH.fullmatch(url):
            raise _refused(param, "this is no URL that can be fetched")
        if parts.scheme != "https":
            raise _refused(param, "URLs must begin with https://")
        host = authority.removesuffix(f":{port}") if port == _PORT else authority
        if not _HOST.fullmatch(host) or host not in self._hosts:
            raise _refused(param, "recordings may not be fetched from there")
        return host, (parts.path or "/") + (f"?{parts.query}" if parts.query else "")

    async def _address(self, host: str, param: str) -> str:
        found = await self._resolve(host)
        # All of them: which one a connection takes is not for whoever runs the name server.
        if not found or not all(self._accepts(address) for address in found):
            raise _refused(param, "recordings may not be fetched from there")
        return found[0]

    async def _get(self, host: str, address: str, target: str, param: str) -> bytes:
        """What `host` has at `target`, asked at an address that needs no further look-up."""
        place = f"[{address}]" if ":" in address else address
        headers = {
            "Host": host,
            "User-Agent": f"qwen3-tts-serve/{__version__}",
            "Accept": "audio/*",
            "Accept-Encoding": "identity",
        }
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            auto_decompress=False,
        )
        request = session.get(
            URL(f"https://{place}:{self._port}{target}", encoded=True),
            headers=headers,
            allow_redirects=False,
            ssl=self._context or True,
            server_hostname=host,
        )
        async with session, request as response:
            self._check(response, param)
            body = bytearray()
            async for piece in response.content.iter_any():
                body += piece
                if len(body) > self._max_bytes:
                    raise self._too_large(param)
        return bytes(body)

    def _check(self, response: aiohttp.ClientResponse, param: str) -> None:
        if response.status != 200:
            raise _failed(
                param,
                f"was answered with {response.status}; redirects are not followed"
                if 300 <= response.status < 400
                else f"was answered with {response.status}",
            )
        if (response.content_length or 0) > self._max_bytes:
            raise self._too_large(param)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise _failed(param, "came compressed")

    def _too_large(self, param: str) -> InvalidRequest:
        return _failed(param, f"is larger than {self._max_bytes / (1 << 20):g} MiB")


def _refused(param: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"'{param}': {why}.", param, "url_not_allowed")


def _failed(param: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"The recording of '{param}' {what}.", param, "invalid_ref_audio")
