"""Whose page a request is from, by the headers that browsers write."""

import pytest

from serve_app.http.access.origins import is_foreign

EVIL = {"origin": "https://evil.example"}
HERE = {"host": "tts.example:8000"}


def foreign(headers: dict[str, str], *allowed: str) -> bool:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    return is_foreign({"type": "http", "headers": raw}, allowed)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        HERE,
        {**HERE, "origin": "http://tts.example:8000"},
        {"host": "TTS.example", "origin": "https://tts.example"},
        {"host": "tts.example:443", "origin": "https://tts.example"},
        {"host": "[::1]:8000", "origin": "http://[::1]:8000"},
        # A proxy that ends TLS, one behind another, one that says nothing of the host it had.
        {
            "host": "ingress:8000",
            "x-forwarded-host": "tts.example",
            "origin": "https://tts.example",
        },
        {
            "host": "ingress:8000",
            "x-forwarded-host": "tts.example, inner",
            "origin": "https://tts.example",
        },
        {**HERE, "origin": "https://tts.example", "sec-fetch-site": "same-origin"},
        # A form of the own page with the policy no-referrer.
        {**HERE, "origin": "null", "sec-fetch-site": "same-origin"},
        {**HERE, "origin": "chrome-extension://abcdefgh"},
        {**HERE, "origin": "moz-extension://1-2-3", "sec-fetch-site": "none"},
    ],
)
def test_programs_and_the_own_pages_are_not_foreign(headers: dict[str, str]) -> None:
    assert not foreign(headers)


@pytest.mark.parametrize(
    "headers",
    [
        {**HERE, **EVIL},
        {**HERE, **EVIL, "sec-fetch-site": "cross-site"},
        {**HERE, "origin": "http://tts.example:3000", "sec-fetch-site": "same-site"},
        {**HERE, "origin": "http://tts.example"},
        {**HERE, "origin": "http://tts.example:8000@evil.example"},
        {
            "host": "ingress:8000",
            "x-forwarded-host": "tts.example",
            "origin": "http://ingress:8000",
        },
        # Of a frame that its page has locked up.
        {**HERE, "origin": "null"},
        {**HERE, "origin": "null", "sec-fetch-site": "cross-site"},
        {"origin": "null"},
        {**HERE, "origin": "file://"},
        {**HERE, "origin": ""},
        {**HERE, "origin": "http://["},
        {**HERE, "origin": "http://tts.example:port"},
        {"host": "[", "origin": "http://tts.example"},
        {**EVIL},
        # Something took the Origin out.
        {**HERE, "sec-fetch-site": "cross-site"},
    ],
)
def test_pages_of_others_are(headers: dict[str, str]) -> None:
    assert foreign(headers)
    assert not foreign(headers, "*")


def test_the_configuration_names_pages() -> None:
    assert not foreign({**HERE, **EVIL, "sec-fetch-site": "cross-site"}, "https://evil.example")
    assert not foreign({**HERE, "origin": "null"}, "null")
    assert foreign({**HERE, "origin": "https://evil.example:8443"}, "https://evil.example")
