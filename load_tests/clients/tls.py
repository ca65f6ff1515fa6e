"""A TLS front for a server on this machine: OpenAI's clients for Node open no other WebSocket."""

import asyncio
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_PIECE: Final = 1 << 16


@contextmanager
def tls_front(url: str, folder: Path) -> Iterator[tuple[str, Path] | None]:
    """An https address of the server at `url`, and the certificate that it shows; None where there
    is no openssl to make one. `folder` keeps the certificate.
    """
    target = urlsplit(url)
    if target.scheme == "https" or shutil.which("openssl") is None:
        yield None
        return
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    if not certificate.exists():
        _make(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner = await asyncio.open_connection(target.hostname, target.port or 80)
            await asyncio.gather(_pipe(reader, inner[1]), _pipe(inner[0], writer))
        finally:
            writer.close()

    listening = asyncio.start_server(carry, "127.0.0.1", ssl=context)
    server = asyncio.run_coroutine_threadsafe(listening, loop).result()
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", certificate
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _make(certificate: Path, key: Path) -> None:
    certificate.parent.mkdir(parents=True, exist_ok=True)
    names = ("-subj", "/CN=tts", "-addext", "subjectAltName=IP:127.0.0.1")
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30")
    files = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run(
        ["openssl", "req", "-x509", *kind, *names, *files], check=True, capture_output=True
    )
