"""The OpenAPI document says what is true: every example of it works."""

import asyncio

import pytest

from serve_app.config import JobsConfig
from tests.integration.http.service import Service
from tests.integration.http.voices.recordings import WAV, config_of, upload

DOCUMENT = Service().app.openapi()


def examples():
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                for name, example in content.get("examples", {}).items():
                    yield pytest.param(method, path, kind, example["value"], id=f"{path} {name}")


def sent(method, path, kind, value):
    """The arguments of a request with an example as its body: a file where it names one."""
    if kind == "application/json":
        return {"json": value}
    assert kind == "multipart/form-data"
    content = DOCUMENT["paths"][path][method]["requestBody"]["content"][kind]
    properties = content["schema"]["properties"]
    names = [name for name in value if properties[name].get("format") == "binary"]
    fields = {name: text for name, text in value.items() if name not in names}
    # With no file a client's library would send another kind of form.
    return {"data": fields, "files": {name: WAV for name in names} or {"none": b""}}


@pytest.mark.parametrize(("method", "path", "kind", "value"), examples())
def test_an_example_works_and_is_answered_as_stated(method, path, kind, value, tmp_path):
    async def main():
        config = config_of(tmp_path).model_copy(
            update={"jobs": JobsConfig(directory=str(tmp_path / "jobs"))}
        )
        async with Service(config=config).http() as http:
            place = path
            if "{voice}" in path:
                place = path.format(voice=(await upload(http, "Otto"))["id"])
            response = await http.request(
                method, place.format(alias="nova"), **sent(method, path, kind, value)
            )
            stated = DOCUMENT["paths"][path][method]["responses"]
            assert 200 <= response.status_code < 300, response.text
            content = stated[str(response.status_code)]["content"]
            assert response.headers["content-type"].partition(";")[0] in content

    asyncio.run(main())


def test_every_body_has_an_example():
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                assert content.get("examples"), path


def test_every_route_states_openais_errors_and_not_fastapis():
    for path, operations in DOCUMENT["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            content = operation["responses"]["default"]["content"]
            assert "error" in content["application/json"]["schema"]["properties"]


def test_what_can_be_read_without_an_id_can_be_read():
    async def main():
        async with Service().http() as http:
            for path, operations in DOCUMENT["paths"].items():
                if "get" in operations and "{" not in path:
                    assert (await http.get(path)).status_code == 200, path

    asyncio.run(main())
