"""The OpenAPI document says what is true: every example of it works."""

import asyncio

import pytest

from serve_app.config import IngressConfig, JobsConfig
from tests.integration.http.service import Service

DOCUMENT = Service().app.openapi()


def examples():
    for path, operations in DOCUMENT["paths"].items():
        for method, operation in operations.items():
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                for name, example in content.get("examples", {}).items():
                    yield pytest.param(method, path, kind, example["value"], id=f"{path} {name}")


@pytest.mark.parametrize(("method", "path", "kind", "value"), examples())
def test_an_example_works_and_is_answered_as_stated(method, path, kind, value, tmp_path):
    async def main():
        config = IngressConfig(jobs=JobsConfig(directory=str(tmp_path)))
        async with Service(config=config).http() as http:
            assert kind == "application/json"
            response = await http.request(method, path, json=value)
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
