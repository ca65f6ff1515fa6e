"""Long texts through the application: states, errors, several servers over one folder."""

import asyncio
import errno
import json
import os
from contextlib import AsyncExitStack, asynccontextmanager

import httpx2
import numpy as np
import pytest
import soundfile

from serve_app.config import IngressConfig, JobsConfig, VoicesConfig
from serve_app.errors import Overloaded, StageFailed, UnknownModel
from serve_app.fakes import fake_card
from serve_app.http.speech.accept import Speech, TextSize
from serve_app.http.voices.parts import Voices
from tests.integration.http.service import CARD, SEED, Service, served
from tests.integration.http.voices.recordings import VOICES, WAV, cloning, upload
from tests.waiting import until

PATH = "/v1/audio/speech/long"
UNIT = "A sentence of a text that is long. "
TEXT = UNIT * 60
FIELDS = {"voice": "ryan", "response_format": "pcm", "seed": SEED}


def config(folder, **settings):
    jobs = {"directory": str(folder), "max_unit_frames": 200, "lease_s": 0.4, "poll_s": 0.05}
    return IngressConfig(jobs=JobsConfig(**{**jobs, **settings}))


class Reading(Service):
    """Notes which units were made to their end."""

    def __init__(self, folder, settings=None, **talker):
        super().__init__(config=config(folder, **(settings or {})), **talker)
        self.made = []

    async def speak(self, request):
        async for chunk in super().speak(request):
            yield chunk
        self.made.append(request.request_id)


@asynccontextmanager
async def running(service):
    async with service.app.router.lifespan_context(service.app), service.http() as http:
        yield http


async def created(http, text=TEXT, **fields):
    response = await http.post(PATH, json={**FIELDS, "input": text, **fields})
    assert response.status_code == 202, response.text
    return response.json()["id"]


async def shown(http, job_id):
    return (await http.get(f"{PATH}/{job_id}")).json()


async def in_state(http, job_id, state):
    async with asyncio.timeout(20):
        while (found := await shown(http, job_id))["status"] != state:
            await asyncio.sleep(0.02)
    return found


async def uninterrupted(service):
    """int16 [N] of the text as one stream."""
    voicing = Voices.open(IngressConfig(), lambda _: None).voicing
    speech = Speech(service.catalog, IngressConfig(), voicing)
    job = await speech.accept({**FIELDS, "input": TEXT}, size=TextSize(500_000, 200))
    return np.concatenate([chunk.samples async for chunk in job.chunks(service.speak)])


def test_a_job_is_made_unit_by_unit_and_downloaded(tmp_path):
    async def main():
        service = Reading(tmp_path)
        async with running(service) as http:
            job_id = await created(http)
            job = await in_state(http, job_id, "completed")
            assert job["progress"]["units_done"] == job["progress"]["units_total"] > 5
            assert job["progress"]["percent"] == 100
            assert job["progress"]["characters_done"] > 2000
            response = await http.get(job["download_url"])
            assert response.headers["content-type"] == "audio/pcm;rate=24000;channels=1"
            assert response.headers["x-ai-generated"] == "true"
            heard = np.frombuffer(response.content, "<i2")
            assert all(request.background for request in service.talker.requests)
            np.testing.assert_array_equal(heard, await uninterrupted(service))
            assert job["duration_seconds"] == pytest.approx(len(heard) / 24000, abs=0.001)

    asyncio.run(main())


@pytest.mark.parametrize("audio_format", ["mp3", "opus", "aac", "flac"])
def test_every_format_and_speed_is_one_file(tmp_path, audio_format):
    async def main():
        async with running(Reading(tmp_path)) as http:
            job_id = await created(http, response_format=audio_format, speed=1.25)
            job = await in_state(http, job_id, "completed")
            (tmp_path / "file").write_bytes((await http.get(job["download_url"])).content)
            if audio_format in ("mp3", "flac"):
                assert soundfile.info(tmp_path / "file").duration == pytest.approx(
                    job["duration_seconds"], abs=0.1
                )

    asyncio.run(main())


def test_a_job_is_listened_to_while_it_is_made(tmp_path):
    async def main():
        service = Reading(tmp_path, frame_s=0.05)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(service.app.router.lifespan_context(service.app))
            url = await stack.enter_async_context(served(service.app))
            http = await stack.enter_async_context(httpx2.AsyncClient(base_url=url))
            job_id = await created(http)
            heard = b""
            path = f"{PATH}/{job_id}/download?follow=true"
            async with http.stream("GET", path) as response:
                assert response.status_code == 200
                async for piece in response.aiter_bytes():
                    if not heard:
                        assert (await shown(http, job_id))["status"] == "processing"
                    heard += piece
            assert heard == (await uninterrupted(Reading(tmp_path))).tobytes()

    asyncio.run(main())


def test_a_folder_that_hangs_holds_up_no_speech(tmp_path):
    """As a shared file system does whose server is away: here a pipe that nobody writes to."""

    async def main():
        service = Reading(tmp_path)
        async with service.http() as http:
            job_id = await created(http)
            wanted, pipe = tmp_path / job_id / "wanted", tmp_path / "pipe"
            os.mkfifo(pipe)
            wanted.unlink()
            wanted.hardlink_to(pipe)
            # More than any pool of threads has.
            looks = [asyncio.create_task(shown(http, job_id)) for _ in range(64)]
            try:
                await asyncio.sleep(0.2)
                speech = {**FIELDS, "input": "A long text. " * 300}
                async with asyncio.timeout(20):
                    response = await http.post("/v1/audio/speech", json=speech)
                assert response.status_code == 200
                assert not any(look.done() for look in looks)
            finally:
                wanted.unlink()
                wanted.write_text("run")
                os.close(os.open(pipe, os.O_RDWR))
            assert {(await look)["status"] for look in looks} == {"pending"}

    asyncio.run(main())


def test_a_cancelled_job_stops_and_can_be_tried_again(tmp_path):
    async def main():
        service = Reading(tmp_path, frame_s=0.01)
        async with running(service) as http:
            job_id = await created(http)
            await until(lambda: len(service.made) > 1)
            job = (await http.post(f"{PATH}/{job_id}/cancel")).json()
            assert job["status"] == "cancelled"
            await until(lambda: service.idle)
            for change in ("pause", "resume"):
                response = await http.put(f"{PATH}/{job_id}/{change}")
                assert response.status_code == 409
                assert response.json()["error"]["type"] == "conflict_error"
                assert response.headers["x-should-retry"] == "false"
            assert (await http.put(f"{PATH}/{job_id}/retry")).json()["status"] == "processing"
            job = await in_state(http, job_id, "completed")
            assert (await http.put(f"{PATH}/{job_id}/cancel")).status_code == 409
            heard = (await http.get(job["download_url"])).content
            assert heard == (await uninterrupted(Reading(tmp_path))).tobytes()

    asyncio.run(main())


class Broken(Reading):
    is_broken = True

    async def speak(self, request):
        if self.is_broken and request.request_id.endswith(".3"):
            raise StageFailed("CUDA at /root")
        async for chunk in super().speak(request):
            yield chunk


def test_a_job_that_breaks_a_stage_says_so_and_goes_on_when_it_is_tried_again(tmp_path):
    async def main():
        service = Broken(tmp_path)
        async with running(service) as http:
            job_id = await created(http)
            job = await in_state(http, job_id, "failed")
            assert job["error"]["code"] == "generation_failed"
            assert "CUDA" not in json.dumps(job)
            service.is_broken = False
            await http.put(f"{PATH}/{job_id}/retry")
            job = await in_state(http, job_id, "completed")
            assert job["error"] is None

    asyncio.run(main())


def test_a_deleted_job_leaves_nothing(tmp_path):
    async def main():
        service = Reading(tmp_path, frame_s=0.01)
        async with running(service) as http:
            job_id = await created(http)
            await until(lambda: len(service.made) > 1)
            response = await http.delete(f"{PATH}/{job_id}")
            assert response.json() == {"id": job_id, "object": "audio.speech.job", "deleted": True}
            await until(lambda: service.idle)
            assert (await http.get(f"{PATH}/{job_id}")).status_code == 404
            assert (await http.delete(f"{PATH}/{job_id}")).status_code == 404
        assert list(tmp_path.iterdir()) == []

    asyncio.run(main())


def test_servers_over_one_folder_share_the_jobs_and_make_nothing_twice(tmp_path):
    async def main():
        services = [Reading(tmp_path, {"running": 1}, frame_s=0.001) for _ in range(3)]
        async with AsyncExitStack() as stack:
            https = [await stack.enter_async_context(running(service)) for service in services]
            ids = [await created(https[n % 3]) for n in range(6)]
            for job_id in ids:
                await in_state(https[0], job_id, "completed")
        made = [unit for service in services for unit in service.made]
        assert len(made) == len(set(made))
        assert all(service.made for service in services)

    asyncio.run(main())


def test_another_server_goes_on_with_the_job_of_one_that_is_dead(tmp_path):
    async def main():
        first = Reading(tmp_path, frame_s=0.02)
        # Its leases are not given back: the loop that carries it stops at once.
        dead = asyncio.get_running_loop().create_task(hold(first))
        await until(lambda: len(first.made) > 2)
        (job_id,) = [path.name for path in tmp_path.iterdir()]
        (lease,) = (tmp_path / job_id).glob("lease.*")
        content = lease.read_bytes()
        dead.cancel()
        await asyncio.gather(dead, return_exceptions=True)
        lease.write_bytes(content)  # as if it had not been released
        num_made = len(first.made)
        second = Reading(tmp_path)
        async with running(second) as http:
            job = await in_state(http, job_id, "completed")
            heard = (await http.get(job["download_url"])).content
        assert len(second.made) <= job["progress"]["units_total"] - num_made + 4
        assert heard == (await uninterrupted(second)).tobytes()
        assert sorted(file.name for file in (tmp_path / job_id).glob("lease.*")) == [
            "lease.1",
            "lease.2",
        ]

    async def hold(service):
        async with running(service) as http:
            await created(http)
            await asyncio.sleep(30)

    asyncio.run(main())


def test_a_job_waits_for_room_and_leaves_places_to_listeners(tmp_path):
    class Full(Reading):
        full = True

        async def speak(self, request):
            assert request.background
            if self.full:
                raise Overloaded("full", 0.01)
            async for chunk in super().speak(request):
                yield chunk

    async def main():
        service = Full(tmp_path)
        async with running(service) as http:
            job_id = await created(http)
            await in_state(http, job_id, "processing")
            await asyncio.sleep(0.3)
            assert (await shown(http, job_id))["progress"]["units_done"] == 0
            service.full = False
            await in_state(http, job_id, "completed")

    asyncio.run(main())


async def begun(folder, **fields):
    """The id of a job of which a server has made a part."""
    service = Reading(folder, frame_s=0.02)
    async with running(service) as http:
        job_id = await created(http, **fields)
        await until(lambda: service.made)
    return job_id


def test_a_server_that_knows_no_model_yet_leaves_a_job_as_it_is(tmp_path):
    async def main():
        job_id = await begun(tmp_path)
        service = Reading(tmp_path)
        service.catalog.remove(CARD.name)
        async with running(service) as http:
            await asyncio.sleep(0.3)
            assert (await shown(http, job_id))["status"] == "processing"
            # Nor is it made by whichever model is ready first.
            service.catalog.expect({CARD.name: frozenset([CARD.name])})
            service.catalog.add(fake_card(name="another", path="fakes/another"))
            await asyncio.sleep(0.3)
            assert (await shown(http, job_id))["status"] == "processing"
            assert service.made == []
            service.catalog.add(CARD)
            await in_state(http, job_id, "completed")
        assert {request.model for request in service.talker.requests} == {CARD.name}

    asyncio.run(main())


def test_a_job_of_a_model_that_is_not_served_any_more_is_made_as_it_was_asked_for(tmp_path):
    async def main():
        any_model, this_model = await begun(tmp_path), await begun(tmp_path, model=CARD.name)
        service = Reading(tmp_path, cards=[fake_card(name="another", path="fakes/another")])
        # Nor does it wait for the model of an application that has failed, or is starting.
        service.catalog.expect({"a third": frozenset(["a third"])})
        async with running(service) as http:
            await in_state(http, any_model, "completed")
            job = await in_state(http, this_model, "failed")
            assert job["error"]["code"] == "model_not_found"
            assert f"'{CARD.name}' does not exist" in job["error"]["message"]

    asyncio.run(main())


def test_a_job_whose_model_goes_while_it_is_made_goes_on_when_it_is_back(tmp_path):
    class Leaving(Reading):
        """As an ingress at the end of its server: its model goes, with all others."""

        is_there = True

        async def speak(self, request):
            if len(self.made) > 1 and self.is_there:
                self.is_there = False
                self.catalog.remove(CARD.name)
            if not self.is_there:
                raise UnknownModel("gone", "model", "model_not_found")
            async for chunk in super().speak(request):
                yield chunk

    async def main():
        service = Leaving(tmp_path, frame_s=0.01)
        async with running(service) as http:
            job_id = await created(http)
            await until(lambda: not service.is_there)
            await asyncio.sleep(0.3)
            assert (await shown(http, job_id))["status"] == "processing"
            assert len(list((tmp_path / job_id).glob("lease.*"))) == 1
        second = Reading(tmp_path)
        async with running(second) as http:
            job = await in_state(http, job_id, "completed")
            heard = (await http.get(job["download_url"])).content
        assert heard == (await uninterrupted(second)).tobytes()

    asyncio.run(main())


def test_a_language_in_the_name_of_the_model_holds_for_the_whole_job(tmp_path):
    async def main():
        service = Reading(tmp_path)
        async with running(service) as http:
            await in_state(http, await created(http, model="tts-1-de"), "completed")
        assert {request.language for request in service.talker.requests} == {"german"}

    asyncio.run(main())


def test_jobs_are_listed_newest_first_in_pages(tmp_path):
    async def main():
        service = Reading(tmp_path)
        async with running(service) as http:
            ids = {await created(http, UNIT) for _ in range(3)}
            for job_id in ids:
                await in_state(http, job_id, "completed")
            page = (await http.get(PATH, params={"limit": 2})).json()
            assert page["has_more"] is True
            rest = (await http.get(PATH, params={"after": page["last_id"]})).json()
            assert {job["id"] for job in page["data"] + rest["data"]} == ids
            assert (await http.get(PATH, params={"status": "failed"})).json()["data"] == []
            for params in ({"limit": 0}, {"limit": 101}, {"status": "odd"}):
                assert (await http.get(PATH, params=params)).status_code == 400
            assert (await http.get(PATH, params={"after": "job_0"})).status_code == 404

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"input": ""}, 400, "input"),
        ({"input": "x" * 500_001}, 400, "input"),
        ({"input": "Hello.", "max_new_tokens": 3}, 400, "max_new_tokens"),
        ({"input": "Hello.", "voice": "nobody"}, 400, "voice"),
        ({"input": "Hello.", "model": "gpt-9"}, 404, "model"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_cannot_be_read_is_refused_at_once(tmp_path, body, status, param):
    async def main():
        async with Reading(tmp_path).http() as http:
            response = await http.post(PATH, json=body)
            assert response.status_code == status
            assert response.json()["error"]["param"] == param
            assert (await http.post(PATH, content=b" " * 7_000_000)).status_code == 413
            bad = await http.post(PATH, content=b"\xff", headers={"content-type": "text/plain"})
            assert bad.status_code == 400
        assert list(tmp_path.iterdir()) == []

    asyncio.run(main())


@pytest.mark.parametrize("job_id", ["job_0", "%2e%2e", "..%2f..", "job_" + "0" * 32])
def test_an_id_that_is_none_is_not_found(tmp_path, job_id):
    async def main():
        async with Reading(tmp_path).http() as http:
            for path in ("", "/download", "/sse"):
                response = await http.get(f"{PATH}/{job_id}{path}")
                assert response.status_code in (404, 405)  # another path, with a slash in it

    asyncio.run(main())


def test_there_is_an_end_to_jobs_and_to_their_audio(tmp_path):
    async def main():
        async with running(Reading(tmp_path, {"max_jobs": 1})) as http:
            await created(http, UNIT)
            response = await http.post(PATH, json={**FIELDS, "input": UNIT})
            assert response.status_code == 429
        async with running(Reading(tmp_path / "b", {"max_bytes": 30_000})) as http:
            job_id = await created(http)
            job = await in_state(http, job_id, "completed")
            assert job["duration_seconds"] > 1
            response = await http.post(PATH, json={**FIELDS, "input": UNIT})
            assert response.status_code == 507
            assert response.json()["error"]["code"] == "storage_full"

    asyncio.run(main())


@pytest.mark.parametrize(
    ("number", "status", "code", "words", "header"),
    [
        (errno.ENOSPC, 507, "storage_full", "no room for more {}.", ("x-should-retry", "false")),
        (errno.EROFS, 503, "storage_unavailable", "read or write its {}", ("retry-after", "1")),
    ],
)
def test_a_disk_that_is_full_or_cannot_be_written_is_said(
    tmp_path, monkeypatch, number, status, code, words, header
):
    def sync(descriptor):
        raise OSError(number, os.strerror(number), str(tmp_path))

    async def main():
        service = cloning(
            tmp_path,
            config=IngressConfig(
                jobs=JobsConfig(directory=str(tmp_path / "jobs")),
                voices=VoicesConfig(path=str(tmp_path / "voices")),
            ),
        )
        file = ("clip.wav", WAV, "audio/wav")
        async with service.http() as http:
            await upload(http, "Anna")
            monkeypatch.setattr("os.fsync", sync)
            answers = [
                await http.post(PATH, json={"input": UNIT, "voice": "Anna"}),
                await http.post(VOICES, data={"name": "Otto"}, files={"audio_sample": file}),
            ]
        for answer, what in zip(answers, ("audio of long texts", "voices"), strict=True):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (status, code)
            assert words.format(what) in error["message"]
            assert header in answer.headers.items()
            assert str(tmp_path) not in answer.text  # that is for the log
        assert not list((tmp_path / "jobs").glob("job_*"))

    asyncio.run(main())


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()

    async def main():
        async with running(Reading(tmp_path / "file")) as http:
            answer = await http.post(PATH, json={**FIELDS, "input": UNIT})
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "storage_unavailable"

    asyncio.run(main())


def test_a_job_that_fills_the_disk_says_so(tmp_path, monkeypatch):
    sync = os.fsync

    async def main():
        service = Reading(tmp_path, frame_s=0.01)
        async with running(service) as http:
            job_id = await created(http)
            await until(lambda: len(service.made) > 1)

            def full(descriptor):
                if "/units/" in os.readlink(f"/proc/self/fd/{descriptor}"):
                    raise OSError(errno.ENOSPC, "No space left on device")
                sync(descriptor)

            monkeypatch.setattr("os.fsync", full)
            job = await in_state(http, job_id, "failed")
            assert job["error"]["code"] == "storage_full"

    asyncio.run(main())


def test_old_jobs_go_and_those_at_work_stay(tmp_path):
    async def main():
        async with running(Reading(tmp_path)) as http:
            old = await created(http, UNIT)
            await in_state(http, old, "completed")
        waiting = Reading(tmp_path, {"keep_s": 0.01}, frame_s=30.0)
        async with waiting.http() as http:
            new = await created(http, UNIT)
        async with running(waiting) as http:
            await until(lambda: not waiting.idle)
            assert (await http.get(f"{PATH}/{old}")).status_code == 404
            assert (await shown(http, new))["status"] == "processing"

    asyncio.run(main())
