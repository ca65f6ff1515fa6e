"""What an ingress learns of the requests that the proxy before it has refused by itself."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from serve_app import metrics
from serve_app.http.access.fronted import Fronted


class Sums(metrics.NoRecorder):
    def __init__(self) -> None:
        self.refused = 0.0

    def add(self, metric: metrics.Metric, amount: float, **labels: str) -> None:
        assert metric is metrics.REFUSED_AT_PROXY
        assert not labels
        self.refused += amount


async def nothing(scope: Scope, receive: Receive, send: Send) -> None:
    del scope, receive, send


async def nobody() -> Message:
    raise AssertionError


async def forgotten(message: Message) -> None:
    del message


def test_all_that_the_proxy_refused_are_counted_and_the_log_says_so_now_and_then(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now_s, sums = 100.0, Sums()
    layer = Fronted(nothing, sums, lambda: now_s)

    def request(*told: str) -> None:
        headers = [(b"x-tts-refused", each.encode()) for each in told]
        asyncio.run(layer({"type": "http", "headers": headers}, nobody, forgotten))

    for told in ("0", "-3", "many"):
        request(told)
    request()
    assert not caplog.messages
    request("3")
    now_s = 102.0
    request("40")
    now_s = 105.0
    request("2")
    assert sums.refused == 45
    assert caplog.messages == [
        "HAProxy refused 3 requests by itself",
        "HAProxy refused 42 requests by itself",
    ]
