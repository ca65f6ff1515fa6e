"""The files of the playground: what is sent, and that nothing else of the machine is."""

import asyncio
import re

import pytest

from serve_app.http.web.routes import STATIC
from tests.integration.http.service import Service


def get(path, headers=None, method="GET"):
    async def main():
        async with Service().http() as http:
            return await http.request(method, path, headers=headers or {})

    return asyncio.run(main())


def test_a_browser_is_led_to_the_playground():
    answer = get("/", {"Accept": "text/html,application/xhtml+xml"})
    assert answer.status_code == 307
    assert answer.headers["location"] == "web/"
    assert get("/web").headers["location"] == "web/"


def test_a_program_finds_a_sign_of_life():
    # LiveKit's prewarming, for one, accepts anything.
    answer = get("/", {"Accept": "*/*"})
    assert answer.status_code == 200
    assert answer.json()["playground"] == "/web/"


def test_the_page_may_load_nothing_from_elsewhere():
    answer = get("/web/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


@pytest.mark.parametrize("path", sorted(STATIC.rglob("*.*")), ids=lambda path: path.name)
def test_every_file_is_sent_and_names_no_other_server(path):
    answer = get(f"/web/{path.relative_to(STATIC)}")
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()
    text = re.sub(r'"http://localhost/"|http://www\.w3\.org/2000/svg', "", answer.text)
    assert "://" not in text


def test_what_has_not_changed_is_not_sent_again():
    etag = get("/web/style.css").headers["etag"]
    assert get("/web/style.css", {"If-None-Match": etag}).status_code == 304


def test_head_says_what_get_would():
    answer = get("/web/", method="HEAD")
    assert answer.status_code == 200
    assert int(answer.headers["content-length"]) == (STATIC / "index.html").stat().st_size


@pytest.mark.parametrize(
    "path", ["nothing.js", "../routes.py", "%2e%2e/routes.py", "js", "..%2f..%2fapp.py"]
)
def test_nothing_else_can_be_read(path):
    answer = get(f"/web/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_reference_comes_from_this_server_behind_any_prefix(page):
    answer = get(page)
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    found = re.findall(r"""(?:src|href|url|spec-url)\s*[=:]\s*["']([^"']+)["']""", answer.text)
    assert {"openapi.json", "web/icon.svg"} < set(found)
    for address in found:
        assert not address.startswith(("/", "http"))
        assert get(f"/{address}").status_code == 200


def test_of_its_package_only_three_files_are_sent():
    assert get("/docs/swagger-ui.css").headers["content-type"].startswith("text/css")
    for name in ("favicon.png", "..%2fcore.py", "__init__.py"):
        assert get(f"/docs/{name}").status_code == 404
