"""OpenAI's installed client, as `load_tests.clients matrix` tries those of all ages."""

import ssl
import sys
import urllib.request

import numpy as np
import pytest

from load_tests.clients import matrix
from load_tests.clients.tls import tls_front
from load_tests.servers.fake import AUDIO_S, fake_server, free_port


@pytest.fixture(scope="module")
def url():
    port = free_port()
    with fake_server(port, frame_s=0.001):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def told(url):
    command = [sys.executable, str(matrix.PROGRAMS / "of_openai.py")]
    return list(matrix.cases(command, ["--breaks"], url, None, None))


def test_every_format_way_and_error_is_as_it_should_be(told):
    wrong = {case["case"]: matrix.problem(case, AUDIO_S) for case in told}
    assert {name: text for name, text in wrong.items() if text} == {}
    made = {case["case"] for case in told if "audio" in case}
    assert {f"{form} {way}" for form in matrix.FORMATS for way in matrix.WAYS} < made
    assert "pcm realtime" in made
    row = matrix.row([(case, wrong[case["case"]]) for case in told])
    assert row == ["ok"] * len(row)


def test_what_is_wrong_is_said(told):
    good = next(case for case in told if case["case"] == "wav create")
    assert "expected" in str(matrix.problem({**good, "audio": good["audio"][:-2400]}, AUDIO_S))
    assert matrix.problem({**good, "audio": np.zeros(99)}, None) == "silence"
    assert "two request ids" in str(matrix.problem({**good, "request_id": "a, b"}, None))
    voice = next(case for case in told if case["case"] == "unknown voice")
    assert matrix.problem({**voice, "message": "422 status code (no body)"}, None) is not None
    broken = next(case for case in told if case["case"] == "breaks off, create")
    assert matrix.row([(broken, "took it for a success")])[-1] == "FAIL - -"


def test_a_server_is_reached_through_tls(url, tmp_path):
    with tls_front(url, tmp_path) as front:
        if front is None:
            pytest.skip("needs openssl")
        secure, certificate = front
        context = ssl.create_default_context(cafile=certificate)
        with urllib.request.urlopen(f"{secure}/version", context=context) as answer:
            assert answer.status == 200
