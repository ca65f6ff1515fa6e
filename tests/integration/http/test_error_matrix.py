"""Every kind of error at every path: one shape, read by the OpenAI client alike."""

import asyncio
import json

import httpx2
import pytest
import websockets

from serve_app.config import AccessConfig, IngressConfig
from serve_app.errors import Overloaded, StageFailed, StageUnavailable
from serve_app.keys.digest import digest_of
from serve_app.keys.key_file import Key, write
from tests.integration.http.service import Service, served

KEY = {"api-key": "key"}
BODY = {"input": "Hello."}
# Paths that take JSON, with a body that is right.
JSON_PATHS = {
    "/v1/audio/speech": BODY,
    "/audio/speech": BODY,
    "/v1/audio/speech/batch": {"items": [BODY]},
    "/v1/audio/speech/long": BODY,
}
# Methods and paths that are there, without those that need no key.
SKIPPED = ("/openapi.json", "/docs", "/redoc", "/web", "/health", "/ready", "/livez", "/version")


def config_of(folder, **fields):
    write(folder / "keys.yaml", [Key(name="tester", hash=digest_of("key"))])
    access = AccessConfig(keys_file=str(folder / "keys.yaml"), public_lists=False)
    jobs = {"jobs": {"directory": str(folder / "jobs")}}
    return IngressConfig.model_validate({"access": access, **jobs, **fields})


def check(response, status, kind, code=None):
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"] == kind
    assert code is None or error["code"] == code


def sent(service, *requests):
    async def main():
        async with service.http() as http:
            return [await http.request(*request, **options) for request, options in requests]

    return asyncio.run(main())


def routes(service):
    """Method and path of each HTTP route, its parameters filled in."""
    for route in service.app.routes:
        methods = getattr(route, "methods", None)
        if not methods or route.path == "/" or route.path.startswith(SKIPPED):
            continue
        path = route.path.replace(":path", "")
        while "{" in path:
            path = path[: path.index("{")] + "x" + path[path.index("}") + 1 :]
        for method in sorted(methods - {"HEAD"}):
            yield method, path


def test_no_route_lets_in_who_has_no_key_and_all_say_so_alike(tmp_path):
    service = Service(config=config_of(tmp_path))
    found = list(routes(service))
    assert len(found) >= 8
    for response in sent(service, *((route, {}) for route in found)):
        check(response, 401, "invalid_request_error", "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"


def test_unknown_paths_methods_and_things_are_named(tmp_path):
    service = Service(config=config_of(tmp_path))
    options = {"headers": KEY}
    paths = {path for _, path in routes(service)}
    answers = sent(service, *((("PATCH", path), options) for path in sorted(paths)))
    for response in answers:
        check(response, 405, "invalid_request_error", "method_not_allowed")
        assert response.headers["allow"]
    for path in ("/v1/none", "/v1/audio/none", "/none"):
        (response,) = sent(service, (("GET", path), options))
        check(response, 404, "invalid_request_error", "not_found")
    (response,) = sent(service, (("GET", "/v1/models/none"), options))
    check(response, 404, "invalid_request_error", "model_not_found")


@pytest.mark.parametrize("path", ["/v1/audio/speech", "/v1/none"])
def test_a_websocket_where_there_is_none_is_told_where_they_are(tmp_path, path):
    async def main():
        async with served(Service(config=config_of(tmp_path)).app) as url:
            address = f"{url.replace('http', 'ws')}{path}"
            statuses = []
            for headers in ({}, KEY):
                with pytest.raises(websockets.InvalidStatus) as caught:
                    await websockets.connect(address, additional_headers=headers)
                statuses.append(caught.value.response.status_code)
            assert statuses == [401, 404]
            error = json.loads(caught.value.response.body)["error"]
            assert error["message"].startswith(f"There is no WebSocket at {path}; there are ")
            assert "/v1/audio/speech/stream" in error["message"]

    asyncio.run(main())


def test_a_voice_that_is_no_name_is_told_what_it_may_be(tmp_path):
    service = Service(config=config_of(tmp_path))
    body = {**BODY, "voice": {"name": "anna"}}
    (response,) = sent(service, (("POST", "/v1/audio/speech"), {"json": body, "headers": KEY}))
    check(response, 400, "invalid_request_error")
    assert "must be a name, or an object with 'id' or 'blend'" in response.text


@pytest.mark.parametrize("path", JSON_PATHS)
def test_what_is_not_json_or_too_large_or_of_another_type_is_refused(tmp_path, path):
    service = Service(config=config_of(tmp_path))
    post = ("POST", path)

    def with_(content, **headers):
        return post, {"content": content, "headers": {**KEY, **headers}}

    broken, empty, form, packed, large = sent(
        service,
        with_(b"{"),
        with_(b"{}"),
        with_(b"--x--", **{"content-type": "multipart/form-data; boundary=x"}),
        with_(b"x", **{"content-encoding": "gzip"}),
        with_(b"x" * (17 << 20)),
    )
    check(broken, 400, "invalid_request_error")
    check(empty, 400, "invalid_request_error")
    assert empty.json()["error"]["param"] in ("input", "items")
    check(form, 415, "invalid_request_error", "unsupported_media_type")
    check(packed, 415, "invalid_request_error", "unsupported_media_type")
    check(large, 413, "invalid_request_error", "payload_too_large")
    assert service.talker.requests == []


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (Overloaded("full", 2.0), 429, "rate_limit_error", "server_overloaded"),
        (StageUnavailable("away"), 503, "server_error", "service_unavailable"),
        (StageFailed("broken"), 500, "server_error", "generation_failed"),
    ],
)
@pytest.mark.parametrize("mode", ["stream", "file", "sse"])
def test_what_fails_before_the_first_byte_has_a_status(tmp_path, error, status, kind, code, mode):
    service = Service(config=config_of(tmp_path), fail_at=0, error=error)
    fields = {"file": {"stream": False}, "sse": {"stream_format": "sse"}}.get(mode, {})
    options = {"json": {**BODY, **fields}, "headers": KEY}
    (response,) = sent(service, (("POST", "/v1/audio/speech"), options))
    check(response, status, kind, code)
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_what_fails_after_it_breaks_off_and_events_say_why_first(tmp_path):
    service = Service(config=config_of(tmp_path), fail_at=5, error=StageFailed("broken"))

    async def received(**fields):
        lines = []

        async def listen(url, http):
            body = {**BODY, **fields}
            request = http.stream("POST", f"{url}/v1/audio/speech", json=body, headers=KEY)
            async with request as response:
                async for line in response.aiter_lines():
                    lines.append(line)

        async with served(service.app) as url, httpx2.AsyncClient() as http:
            with pytest.raises(httpx2.RemoteProtocolError):
                await listen(url, http)
        return lines

    asyncio.run(received())
    events = [line for line in asyncio.run(received(stream_format="sse")) if line]
    last = json.loads(events[-1].removeprefix("data: "))
    assert (last["type"], last["error"]["code"]) == ("error", "generation_failed")
    assert service.idle


def test_a_key_that_asks_too_often_is_told_when_to_come_again(tmp_path):
    config = config_of(tmp_path)
    access = config.access.model_copy(update={"requests_per_minute": 1.0})
    for path, body in JSON_PATHS.items():
        service = Service(config=config.model_copy(update={"access": access}))
        options = {"json": body, "headers": KEY}
        first, second = sent(service, (("POST", path), options), (("POST", path), options))
        assert first.status_code < 300, first.text
        check(second, 429, "rate_limit_error", "rate_limit_exceeded")
        assert int(second.headers["retry-after"]) >= 1
        assert json.loads(second.headers["retry-after-ms"]) > 0
