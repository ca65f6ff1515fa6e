"""A library in S3, of which a server of moto's is one that speaks the whole protocol.

It is a process of its own: what it imports (flask) breaks in the hands of who looks at every object
of every module, as vLLM does.
"""

import asyncio
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import httpx2
import numpy as np
import pytest

from load_tests.servers.child import free_port
from serve_app.audio.decoding import ClipLimits, decode_clip
from serve_app.config import VoicesConfig
from serve_app.storage.objects import storage_at
from tests.integration.http.service import samples
from tests.integration.http.voices.recordings import VOICES, WAV, cloning, spoken, upload

# What is held of any library, tried again in this one.
from tests.unit.voices.test_library import (  # noqa: F401
    test_two_writers_at_once_lose_nothing,
    test_what_one_server_makes_another_and_a_later_one_have,
)

pytest.importorskip("s3fs", reason="needs the extra `s3`")
if find_spec("moto") is None or find_spec("flask") is None:
    pytest.skip("needs moto (extra `dev`)", allow_module_level=True)

BUCKET = "recordings"
LIMITS = VoicesConfig()
KEYS = {"key": "somebody", "secret": "something"}


@contextmanager
def object_store() -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The address of an object store with a bucket in it, and its process."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end_s = time.monotonic() + 60
            while not made_bucket(url):
                assert process.poll() is None
                assert time.monotonic() < end_s
                time.sleep(0.1)
            yield url, process
        finally:
            process.kill()


def made_bucket(url: str) -> bool:
    try:
        return httpx2.put(f"{url}/{BUCKET}", timeout=20).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.fixture(scope="module")
def store():
    """The address of an object store with a bucket in it."""
    with object_store() as (url, _):
        yield url


@pytest.fixture
def options(store):
    return {"endpoint_url": store, **KEYS}


@pytest.fixture
def place(store, monkeypatch):
    """A library of its own, reached as S3's other clients are told of an address."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", store)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret"])
    return f"s3://{BUCKET}/{secrets.token_hex(8)}/voices"


def test_objects_are_read_written_listed_and_deleted(options):
    path = f"s3://{BUCKET}/{secrets.token_hex(8)}"
    one, other = storage_at(path, options), storage_at(path, options)
    assert list(one.paths("voices")) == []
    assert one.read("generation") is None
    for name in ("voices/a/voice.json", "voices/b/voice.json", "voices/b/recording.flac"):
        other.write(name, name.encode())
    assert sorted(one.paths("voices/b")) == ["voices/b/recording.flac", "voices/b/voice.json"]
    wanted = ["voices/a/voice.json", "voices/c/voice.json"]
    assert one.read_all(wanted) == {wanted[0]: wanted[0].encode()}
    assert one.delete("voices/a/voice.json")
    assert not other.delete("voices/a/voice.json")
    one.delete_folder("voices")
    one.delete_folder("voices")
    assert list(other.paths("")) == []


def test_a_voice_of_one_server_is_spoken_with_by_another(options, tmp_path):
    path = f"s3://{BUCKET}/{secrets.token_hex(8)}"
    stated = {"path": path, "storage_options": options}

    async def main():
        one, other = (cloning(tmp_path, **stated) for _ in range(2))
        async with one.http() as here, other.http() as there:
            assert (await there.get(VOICES)).json()["uploaded_voices"] == []
            voice = await upload(here, "Änne", ref_text="Guten Morgen.")
            async with asyncio.timeout(5):
                while (await there.get(f"{VOICES}/änne")).status_code != 200:
                    await asyncio.sleep(0.05)
            answer = await spoken(there, voice="änne")
            assert answer.status_code == 200, answer.text
            assert np.array_equal(np.frombuffer(answer.content, "<i2"), samples())
            kept = (await there.get(f"{VOICES}/{voice['id']}/download")).content
            assert (await there.delete(f"{VOICES}/{voice['id']}")).status_code == 200
        asked = [request.voice.reference_text for request in other.talker.requests]
        assert asked == ["Guten Morgen."]
        limits = ClipLimits(LIMITS.min_s, LIMITS.max_s, LIMITS.max_upload_bytes)
        mine, theirs = (decode_clip(data, "file", limits) for data in (WAV, kept))
        assert np.array_equal(mine, theirs)

    asyncio.run(main())
    assert [p for p in storage_at(path, options).paths("") if p != "generation"] == []


def test_a_store_that_goes_away_leaves_what_is_known(tmp_path):
    async def main(url, process):
        retries = {"config_kwargs": {"retries": {"max_attempts": 1}}}
        options = {"endpoint_url": url, **KEYS, **retries}
        service = cloning(tmp_path, path=f"s3://{BUCKET}", storage_options=options)
        async with service.http() as http:
            await upload(http, "Anna")
            assert (await spoken(http, voice="Anna")).status_code == 200
            process.kill()
            await asyncio.to_thread(process.wait)
            # So long what has just been read is taken for true.
            await asyncio.sleep(1)
            assert (await spoken(http, voice="Anna")).status_code == 200
            refused = await spoken(http, voice="Otto")
            assert refused.status_code == 503, refused.text

    with object_store() as (url, process):
        asyncio.run(main(url, process))
