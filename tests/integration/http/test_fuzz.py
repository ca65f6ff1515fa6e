"""Requests that nobody thought of: no 5xx, no hang, nothing left behind.

A short run by default; TTS_FUZZ_EXAMPLES=2000 makes a long one.
"""

import asyncio
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import content_type_conformance

from serve_app.config import IngressConfig, JobsConfig
from tests.integration.http.service import Service

EXAMPLES = int(os.environ.get("TTS_FUZZ_EXAMPLES", "8"))
bounded = settings(
    max_examples=EXAMPLES,
    derandomize="TTS_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


class Fuzzed(Service):
    """Counts the streams of listeners: long texts go on in the background."""

    listeners = 0

    async def speak(self, request):
        self.listeners += not request.background
        try:
            async for chunk in super().speak(request):
                yield chunk
        finally:
            self.listeners -= not request.background


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("jobs"))
    return Fuzzed(config=IngressConfig(jobs=JobsConfig(directory=folder)), num_frames=2)


@pytest.fixture(scope="module")
def document(service):
    return schemathesis.openapi.from_asgi("/openapi.json", service.app)


OPERATIONS = [
    (method, path)
    for path, operations in Service().app.openapi()["paths"].items()
    for method in operations
]


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda value: value)
def test_no_request_breaks_the_server(method, path, service, document):
    @bounded
    @given(case=document[path][method].as_strategy())
    def check(case):
        response = case.call()
        assert response.status_code < 500
        if method == "head":
            return
        if response.status_code >= 400:
            assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        else:
            case.validate_response(response, checks=[content_type_conformance])
        assert service.listeners == 0

    check()


# One alphabet per script, and what text processing trips over.
SCRIPTS = [
    "abc XYZ. ",
    "äöüß ÉÑ ",
    "абв ЯЁ. ",
    "αβγ Ω; ",
    "你好，世界。！",
    "こんにちは。カタカナー",
    "안녕하세요 각",
    "مرحبا؟ ١٢٣",
    "שלום. ",
    "नमस्ते। ",
    "สวัสดี ",
    "😀👨‍👩‍👧‍👦🏳️‍🌈👍🏽",
    "\u200b\u200d\u202e\ufeff\u0000\x07\u2028",
    "e\u0301\u0302\u0327 \u1100\u1161",
    "𝔘𝔫𝔦 \U0010ffff \uffff",
]
PARTS = [
    "[pause 0.5s]",
    "[pause 99999s]",
    "[pause",
    "<break time='5s'/>",
    "<prosody rate='slow'>",
    "</prosody>",
    "<say-as interpret-as='ordinal'>",
    "</say-as>",
    "<speak>",
    "<p><s>",
    "<!--",
    "<?xml",
    "&amp;&#x1F600;&#99999999;",
    "1,234.5 %",
    "-12345678901234567890",
    "https://example.com/a?b=c.",
    "a@b.cd",
    "```\ncode\n```",
    "# x\n\n| a | b |\n|---|---|\n",
    "[" * 30,
    "*" * 30,
    "\n\n\n",
]
texts = st.lists(
    st.one_of(*(st.text(script, max_size=30) for script in SCRIPTS), st.sampled_from(PARTS)),
    max_size=12,
).map("".join)
options = st.fixed_dictionaries(
    {}, optional={name: st.booleans() for name in ("normalize", "strip_markdown", "strip_emoji")}
)


@settings(bounded, max_examples=10 * EXAMPLES)
@given(text=texts, language=st.sampled_from(["auto", "en", "de", "zh", "ja"]), wanted=options)
def test_no_text_breaks_the_server(service, text, language, wanted):
    body = {
        "input": text,
        "language": language,
        "normalization_options": wanted,
        "response_format": "pcm",
    }

    async def main():
        async with asyncio.timeout(20), service.http() as http:
            return await http.post("/v1/audio/speech", json=body)

    response = asyncio.run(main())
    assert response.status_code in (200, 400)
    assert len(response.content) % 2 == 0 or response.status_code == 400
    assert service.listeners == 0


@settings(bounded, max_examples=2 * EXAMPLES)
@given(raw=st.one_of(st.binary(max_size=200), st.text(max_size=80).map(str.encode)))
def test_no_bytes_break_the_server(service, raw):
    async def main():
        async with asyncio.timeout(20), service.http() as http:
            for path in ("", "/batch", "/long"):
                yield await http.post(f"/v1/audio/speech{path}", content=raw)
            yield await http.post("/vapi/tts", content=raw)

    async def statuses():
        return [response.status_code async for response in main()]

    assert all(400 <= status < 500 for status in asyncio.run(statuses()))
