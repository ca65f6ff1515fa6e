"""What is refused of untrusted recordings, names and addresses: clearly, early, without harm."""

import asyncio
import base64
import datetime
import ipaddress
import json
import ssl
import threading

import numpy as np
import pytest
import websockets
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serve_app.errors import InvalidRequest, Overloaded
from serve_app.voices.fetching import Fetcher, is_public
from tests.integration.http.service import served
from tests.integration.http.voices.recordings import (
    SPEECH,
    VOICES,
    WAV,
    cloning,
    container,
    sound_file,
    spoken,
    tone,
    upload,
)

HZ = 48000
GOOD = {
    "wav": lambda: sound_file(tone(1.5)),
    "wav of many channels": lambda: sound_file(tone(1.5, 44100, 4), "WAV", "FLOAT", 44100),
    "mp3": lambda: sound_file(tone(1.5, 44100), "MP3", hz=44100),
    "flac": lambda: sound_file(tone(1.5, 96000), "FLAC", hz=96000),
    "ogg vorbis": lambda: sound_file(tone(1.5, 16000), "OGG", hz=16000),
    "ogg opus": lambda: sound_file(tone(1.5, HZ), "OGG", "OPUS", HZ),
    "m4a of a phone": lambda: container(tone(1.5, HZ), "mp4", "aac"),
    "webm of a browser": lambda: container(tone(1.5, HZ), "webm", "libopus"),
    "bare aac": lambda: container(tone(1.5, HZ), "adts", "aac"),
}
BAD = {
    "nothing": (lambda: b"", "invalid_audio"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(5000), "invalid_audio"),
    "a page": (lambda: b"<html>" + b"a" * 5000, "invalid_audio"),
    "a playlist": (lambda: b"#EXTM3U\nfile:///etc/passwd\n" * 9, "invalid_audio"),
    "no samples": (lambda: sound_file(tone(0)), "audio_too_short"),
    "0.5 s": (lambda: sound_file(tone(0.5)), "audio_too_short"),
    "31 s": (lambda: sound_file(tone(31, 8000), hz=8000), "audio_too_long"),
    "hours of silence in a file of 200 kB": (
        lambda: sound_file(np.zeros(8000 * 7200, np.int16), "FLAC", hz=8000),
        "audio_too_long",
    ),
    "silence": (lambda: sound_file(np.zeros(48000, np.float32)), "invalid_audio"),
    "no numbers": (
        lambda: sound_file(np.full(48000, np.nan, np.float32), "WAV", "FLOAT"),
        "invalid_audio",
    ),
    "a rate of 4 GHz": (lambda: WAV[:24] + b"\xff" * 4 + WAV[28:], "invalid_audio"),
    "a length that it has not": (lambda: WAV[:40] + b"\xff" * 4 + WAV[44:2000], "audio_too_short"),
    "a broken flac": (lambda: sound_file(tone(2), "FLAC")[:90], "invalid_audio"),
    "a broken mp3": (lambda: b"ID3" + bytes(3000), "invalid_audio"),
    "a film in mp4": (lambda: container(tone(2, HZ), "mp4", "aac", "mpeg4"), "invalid_audio"),
    "a film in webm": (
        lambda: container(tone(2, HZ), "webm", "libopus", "libvpx"),
        "invalid_audio",
    ),
    "a dozen tracks": (lambda: container(tone(2, HZ), "mp4", "aac", tracks=12), "invalid_audio"),
    "31 s of webm": (lambda: container(tone(31, HZ), "webm", "libopus"), "audio_too_long"),
    "a broken mp4": (lambda: b"\0\0\0\x20ftypisom" + b"\xff" * 3000, "invalid_audio"),
    "a broken webm": (lambda: container(tone(2, HZ), "webm", "libopus")[:300], "invalid_audio"),
    "raw video": (lambda: container(tone(2, HZ), "matroska", "pcm_s16le"), "invalid_audio"),
}


def test_recordings_of_every_kind_are_taken_whatever_they_are_called(tmp_path):
    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:

            async def sent(kind, make):
                files = {"audio_sample": ("../../x.exe", make(), "application/octet-stream")}
                response = await http.post(VOICES, data={"name": kind}, files=files)
                assert response.status_code == 200, (kind, response.text)
                assert abs(response.json()["duration_seconds"] - 1.5) < 0.05, kind

            await asyncio.gather(*(sent(kind, make) for kind, make in GOOD.items()))

    asyncio.run(main())


def test_what_is_no_fit_recording_is_refused_and_says_why(tmp_path):
    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            # More at once than the server reads would be sent away for that reason.
            places = asyncio.Semaphore(2)

            async def sent(kind, make, code):
                files = {"audio_sample": ("voice.wav", make(), "audio/wav")}
                async with places:
                    response = await http.post(VOICES, data={"name": "x"}, files=files)
                assert response.status_code == 400, (kind, response.text)
                error = response.json()["error"]
                assert (kind, error["code"]) == (kind, code)
                assert error["param"] == "audio_sample"
                assert error["type"] == "invalid_request_error"

            await asyncio.gather(*(sent(kind, *rest) for kind, rest in BAD.items()))
            # The same gate for a recording that comes with a request.
            for data in (b"", BAD["31 s"][0](), BAD["a picture"][0]()):
                encoded = base64.b64encode(data).decode() or "data:;base64,"
                response = await spoken(http, ref_audio=encoded)
                assert response.status_code == 400
                assert response.json()["error"]["param"] == "ref_audio"
            for wrong in ("%%%", "QUJD!", "file:///etc/passwd", "ftp://x/y", "data:audio/wav,abc"):
                response = await spoken(http, ref_audio=wrong)
                assert response.status_code == 400
        assert service.encoder.clips == []
        assert service.talker.requests == []
        assert not (tmp_path / "voices").exists()

    asyncio.run(main())


def test_what_is_too_large_is_not_read_to_its_end(tmp_path):
    async def main():
        service = cloning(tmp_path, max_upload_bytes=100_000)
        async with service.http() as http:
            files = {"audio_sample": ("a.wav", bytes(100_001), "audio/wav")}
            response = await http.post(VOICES, data={"name": "x"}, files=files)
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "payload_too_large"
            files = {"audio_sample": ("a.wav", bytes(1 << 21), "audio/wav")}
            response = await http.post(VOICES, data={"name": "x"}, files=files)
            assert response.status_code == 413
            sent = 0

            async def endless():
                nonlocal sent
                head = '--b\r\nContent-Disposition: form-data; name="audio_sample"; filename="a"'
                yield f"{head}\r\n\r\n".encode()
                while True:
                    sent += 1 << 16
                    yield bytes(1 << 16)

            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            for path in (VOICES, "/voices", f"{SPEECH}/upload", "/v1/audio/voice_consents"):
                sent = 0
                response = await http.post(path, content=endless(), headers=headers)
                assert response.status_code == 413
                assert sent < 1 << 21
            data = base64.b64encode(bytes(110_000)).decode()
            response = await spoken(http, ref_audio=data)
            assert response.json()["error"]["code"] == "payload_too_large"

    asyncio.run(main())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n\r\n\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n\xff\xfe\r\n--b--\r\n',
        b"--b\r\nContent-Disposition: form-data; name=x\r\n" * 200,
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 200 + b"--b--\r\n",
    ],
    ids=["nothing", "a boundary", "no name", "no text", "no end", "200 fields"],
)
def test_a_form_that_is_none_is_refused(tmp_path, body):
    async def main():
        async with cloning(tmp_path).http() as http:
            for kind in ("multipart/form-data; boundary=b", "multipart/form-data", "text/xml"):
                response = await http.post(VOICES, content=body, headers={"Content-Type": kind})
                assert response.status_code == 400, response.text
                assert response.json()["error"]["type"] == "invalid_request_error"

    asyncio.run(main())


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..", "a/b", "a\\b", "a\0b", "voice_" + "0" * 32, ".x", "a(1)+b"]
)
def test_no_name_leads_out_of_the_library(tmp_path, name):
    async def main():
        (tmp_path / "secret.flac").write_bytes(b"secret")
        async with cloning(tmp_path).http() as http:
            made = await upload(http, "Anna")
            files = {"audio_sample": (name, WAV, "audio/wav")}
            refused = [
                await http.post(VOICES, data={"name": name}, files=files),
                await http.post(f"{VOICES}/{made['id']}", json={"name": name}),
                await http.put("/voices/Anna", data={"new_name": name}),
                await http.post("/voices/Anna/aliases", data={"alias": name}),
            ]
            for response in refused:
                assert response.status_code == 400, response.text
            for path in (VOICES, "/voices"):
                for end in ("", "/download"):
                    quoted = "".join(f"%{byte:02x}" for byte in name.encode())
                    response = await http.get(f"{path}/{quoted}{end}")
                    assert response.status_code == 404
            assert (await spoken(http, voice=name)).status_code == 400
        ids = [path.name for path in (tmp_path / "voices" / "voices").iterdir()]
        assert ids == [made["id"]]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["secret.flac", "voices"]

    asyncio.run(main())


def test_a_voice_belongs_to_the_key_that_made_it(tmp_path, monkeypatch):
    monkeypatch.setenv("TTS_API_KEY", "sk-one sk-two sk-root")

    async def main():
        service = cloning(tmp_path, admins=("env-3",))
        one, two, root = ({"x-api-key": f"sk-{name}"} for name in ("one", "two", "root"))
        async with service.http() as http:
            made = await upload(http, "Anna", headers=one)
            path = f"{VOICES}/{made['id']}"

            async def seen(headers):
                body = (await http.get(VOICES, headers=headers)).json()
                return [voice["name"] for voice in body["uploaded_voices"]]

            assert [await seen(who) for who in (one, two, root, None)] == [
                ["Anna"],
                [],
                ["Anna"],
                [],
            ]
            assert (await http.get(f"{path}/download", headers=two)).status_code == 404
            assert (await spoken(http, two, voice="Anna")).status_code == 400
            assert (await spoken(http, two, voice=made["id"])).status_code == 400
            assert (await http.delete(path, headers=two)).status_code == 404
            assert (await http.delete(path)).status_code == 401
            await upload(http, "Anna", headers=two)
            await http.post(path, json={"shared": True}, headers=one)
            assert await seen(None) == ["Anna"]
            assert (await spoken(http, two, voice=made["id"])).status_code == 200
            assert (await http.delete(path, headers=two)).status_code == 403
            alias = "/v1/audio/voice_aliases/alloy"
            await http.put(alias, json={"voice": made["id"]}, headers=two)
            assert (await spoken(http, one, voice="alloy")).status_code == 400
            await http.put(alias, json={"voice": made["id"]}, headers=root)
            assert (await spoken(http, one, voice="alloy")).status_code == 200
            assert (await http.delete(path, headers=root)).status_code == 200

    asyncio.run(main())


@pytest.mark.parametrize(
    "url",
    [
        "http://voices.example/a.wav",
        "https://voices.example:8443/a.wav",
        "https://evil.example/a.wav",
        "https://voices.example.evil.example/a.wav",
        "https://voices.example@evil.example/a.wav",
        "https://evil.example\\@voices.example/a.wav",
        "https://voices.example\\.evil.example/a.wav",
        "https://voices.example%2eevil.example/",
        "https://user:pw@voices.example/a.wav",
        "https://VOICES.example#@evil.example/",
        "https://127.0.0.1/a.wav",
        "https://2130706433/a.wav",
        "https://0x7f.1/a.wav",
        "https://[::1]/a.wav",
        "https://[::ffff:169.254.169.254]/latest/meta-data",
        "https://localhost/a.wav",
        "https://voices.example./a.wav",
        "https://voices.example/a\r\nHost: evil.example",
        "https://voices.example/ä",
        "https:///a.wav",
        "https://voices.example:99999/",
        "https://[voices.example/",
        "https://" + "a" * 3000 + ".example/",
    ],
)
def test_no_url_leads_where_the_operator_does_not_allow(url):
    asked = []

    async def resolve(host):
        asked.append(host)
        return ["93.184.216.34"]

    fetcher = Fetcher(["voices.example"], 1000, resolve, accepts=lambda _: False)
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(fetcher.fetch(url, "ref_audio"))
    assert caught.value.code == "url_not_allowed"
    # Only the last part of one of them is no part of the address, and that is never asked for.
    assert set(asked) <= {"voices.example"}


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fc00::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::", "ff02::1"),
    ],
)
def test_addresses_that_are_not_the_internets_are_refused(address):
    assert not is_public(address)

    async def resolve(host):
        return ["93.184.216.34", address]  # one of several: a name server may say so

    fetcher = Fetcher(["voices.example"], 1000, resolve)
    with pytest.raises(InvalidRequest):
        asyncio.run(fetcher.fetch("https://voices.example/a.wav", "ref_audio"))


def test_no_more_recordings_are_fetched_at_once_than_there_is_room_for():
    async def main():
        begun = 0
        slow = asyncio.Event()

        async def resolve(host):
            nonlocal begun
            begun += 1
            await slow.wait()
            return []

        fetcher = Fetcher(["voices.example"], 1000, resolve)
        url = "https://voices.example/a.wav"
        running = [asyncio.create_task(fetcher.fetch(url, "ref_audio")) for _ in range(100)]
        await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
        assert 0 < begun < 100
        running[0].cancel()
        slow.set()
        ends = await asyncio.gather(*running, return_exceptions=True)
        assert sum(isinstance(end, Overloaded) for end in ends) == 100 - begun
        with pytest.raises(InvalidRequest):  # there is room again, and no address
            await fetcher.fetch(url, "ref_audio")

    asyncio.run(main())


def test_urls_are_off_unless_hosts_are_named(tmp_path):
    async def main():
        async with cloning(tmp_path).http() as http:
            response = await spoken(http, ref_audio="https://voices.example/a.wav")
            assert response.status_code == 400
            assert response.json()["error"]["code"] == "url_not_allowed"

    asyncio.run(main())
    assert is_public("93.184.216.34")
    assert is_public("2606:4700::1111")


FORBIDDEN = ("https://voices.example/a.wav", "http://169.254.169.254/a", "file:///etc/passwd")


@pytest.mark.parametrize("url", FORBIDDEN)
def test_no_way_in_is_forgotten(tmp_path, url):
    """Of a speech request by any path, and of a voice that is kept."""
    request = {"input": "Hello.", "ref_audio": url}
    bodies = {
        SPEECH: request,
        f"{SPEECH}/batch": {"items": [request]},
        f"{SPEECH}/long": request,
        VOICES: {"name": "Anna", "audio_sample": url},
        "/voices": {"voice_name": "Anna", "voice_file": url},
        "/v1/audio/voice_consents": {"name": "Anna", "language": "en", "recording": url},
    }
    forms = {f"{SPEECH}/upload": request}

    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            answers = {path: await http.post(path, json=body) for path, body in bodies.items()}
            answers |= {path: await http.post(path, data=body) for path, body in forms.items()}
            by_reference = {"input": "Hello.", "references": [{"audio_path": url, "text": "a"}]}
            answers["references"] = await http.post(SPEECH, json=by_reference)
        for path, answer in answers.items():
            assert answer.status_code == 400 or path.endswith("/batch"), (path, answer.text)
            assert "url_not_allowed" in answer.text, (path, answer.text)
        async with served(service.app) as address:
            socket = f"ws{address.removeprefix('http')}{SPEECH}/stream"
            async with websockets.connect(socket) as connection:
                await connection.send(json.dumps({"type": "session.config", "ref_audio": url}))
                event = json.loads(await connection.recv())
                assert event["type"] == "error"
                assert "'ref_audio'" in event["message"], event
        assert service.talker.requests == []
        assert service.encoder.clips == []

    asyncio.run(main())


def certificate(folder, host):
    """A server's and a client's side of TLS for `host`."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "server.pem").write_bytes(private + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    return server, ssl.create_default_context(cadata=pem.decode())


def test_a_recording_is_fetched_from_the_address_that_was_checked_and_no_more_than_it_may_be(
    tmp_path,
):
    server_side, client_side = certificate(tmp_path, "voices.example")
    head = "HTTP/1.1 200 OK\r\n"
    answers = {
        "/whole": f"{head}Content-Length: 3\r\n\r\nabc",
        "/chunks": f"{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        "/until-closed": f"{head}\r\nabc",
        "/redirect": "HTTP/1.1 302 Found\r\nLocation: https://127.0.0.1/x\r\n\r\n",
        "/missing": "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        "/says-large": f"{head}Content-Length: 99999999999\r\n\r\n",
        "/is-large": f"{head}\r\n" + "a" * 5000,
        "/packed": f"{head}Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        "/long-head": head + "X: " + "a" * 100_000,
        "/half": f"{head}Content-Length: 100\r\n\r\nabc",
        "/no-http": "abc\r\n\r\n",
        "/slow": "HTTP/1.1 200 OK\r\n",
    }
    hosts = []
    gate = threading.Event()

    async def serve(reader, writer):
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        hosts.append(request.split("Host: ")[1].split("\r\n")[0])
        path = request.split()[1]
        writer.write(answers[path.partition("?")[0]].encode())
        await writer.drain()
        while path == "/slow" and not gate.is_set():
            writer.write(b"X")  # a byte now and then keeps no connection for long
            await asyncio.sleep(0.05)
        writer.close()

    async def resolve(host):
        return ["127.0.0.1"]

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_side)
        port = server.sockets[0].getsockname()[1]
        asked = {"resolve": resolve, "context": client_side, "port": port}
        fetcher = Fetcher(["voices.example", "other.example"], 1000, accepts=is_loopback, **asked)
        async with server:
            for path in ("/whole", "/chunks", "/until-closed", "/whole?a=b"):
                got = await fetcher.fetch(f"https://voices.example{path}", "ref_audio")
                assert got == b"abc"
            for path in list(answers)[3:-1]:
                with pytest.raises(InvalidRequest) as caught:
                    await fetcher.fetch(f"https://voices.example{path}", "ref_audio")
                assert caught.value.code == "invalid_ref_audio", path
            # Who answers for another host than its certificate's is not listened to.
            with pytest.raises(InvalidRequest):
                await fetcher.fetch("https://other.example/whole", "ref_audio")
            hasty = Fetcher(["voices.example"], 1000, accepts=is_loopback, timeout_s=0.4, **asked)
            with pytest.raises(InvalidRequest, match="within"):
                await hasty.fetch("https://voices.example/slow", "ref_audio")
            gate.set()
            # By the rule that holds outside of tests, this address is none.
            with pytest.raises(InvalidRequest) as caught:
                await Fetcher(["voices.example"], 1000, **asked).fetch(
                    "https://voices.example/whole", "ref_audio"
                )
            assert caught.value.code == "url_not_allowed"
        assert set(hosts) == {"voices.example"}

    asyncio.run(main())


def is_loopback(address):
    return ipaddress.ip_address(address).is_loopback
