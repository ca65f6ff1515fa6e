"""Whose a long text is: the key's that made it, on any server and after a restart."""

import asyncio
from contextlib import asynccontextmanager

from serve_app.config import AccessConfig, IngressConfig, JobsConfig
from serve_app.keys.digest import digest_of
from serve_app.keys.key_file import Key, write
from tests.integration.http.service import Service

PATH = "/v1/audio/speech/long"
MINE, OTHERS = {"api-key": "mine"}, {"api-key": "another's"}


@asynccontextmanager
async def server(folder, locked=True):
    keys = folder / "keys.yaml"
    hashes = (("a", "mine"), ("b", "another's"))
    write(keys, [Key(name=name, hash=digest_of(key)) for name, key in hashes])
    access = AccessConfig(keys_file=str(keys)) if locked else AccessConfig()
    jobs = JobsConfig(directory=str(folder / "jobs"), lease_s=0.4, poll_s=0.05)
    service = Service(config=IngressConfig(access=access, jobs=jobs))
    async with service.app.router.lifespan_context(service.app), service.http() as http:
        yield http


async def create(http, headers):
    response = await http.post(PATH, json={"input": "Hello."}, headers=headers)
    assert response.status_code == 202, response.text
    return response.json()["id"]


async def ids(http, headers):
    return [job["id"] for job in (await http.get(PATH, headers=headers)).json()["data"]]


async def check(http, job_id, headers, is_there):
    """Every way to a job finds it, or none does."""
    at = f"{PATH}/{job_id}"
    asked = [("GET", ""), ("GET", "/sse"), ("GET", "/download?follow=true"), ("HEAD", "/download")]
    changes = [("PUT", "/pause"), ("POST", "/resume"), ("PUT", "/cancel"), ("PUT", "/retry")]
    for method, way in (*asked, *changes, ("DELETE", "")):
        response = await http.request(method, at + way, headers=headers)
        # A job that is over cannot be paused: that, too, only its own key is told.
        assert (response.status_code != 404) == is_there, (method, way, response.text)
        if not is_there and method != "HEAD":
            assert response.json()["error"]["code"] == "not_found"


def test_a_job_is_there_for_its_own_key_alone(tmp_path):
    async def main():
        async with server(tmp_path) as http:
            mine, others = await create(http, MINE), await create(http, OTHERS)
            assert (await ids(http, MINE), await ids(http, OTHERS)) == ([mine], [others])
            page = await http.get(PATH, params={"after": mine}, headers=OTHERS)
            assert page.status_code == 404
            await check(http, mine, OTHERS, is_there=False)
            assert await ids(http, MINE) == [mine]
        # Another server over the same folder, or this one after a restart.
        async with server(tmp_path) as http:
            assert (await ids(http, MINE), await ids(http, OTHERS)) == ([mine], [others])
            await check(http, mine, OTHERS, is_there=False)
            await check(http, mine, MINE, is_there=True)
            assert (await ids(http, MINE), await ids(http, OTHERS)) == ([], [others])

    asyncio.run(main())


def test_a_job_of_no_key_is_nobodys_once_keys_are_asked_for(tmp_path):
    async def main():
        async with server(tmp_path, locked=False) as http:
            job_id = await create(http, {})
        async with server(tmp_path) as http:
            assert await ids(http, MINE) == []
            await check(http, job_id, MINE, is_there=False)
        async with server(tmp_path, locked=False) as http:
            assert await ids(http, {}) == [job_id]

    asyncio.run(main())
