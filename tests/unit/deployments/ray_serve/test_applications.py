"""What the ingress knows of Serve's applications, also while Serve's controller is away."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from serve_app.deployments.ray_serve.applications import Following, application_of
from serve_app.deployments.ray_serve.nodes import Deployment, Look, Node
from serve_app.http.served.application import Application

APPLICATIONS = {"tts": Application("tts", "Fused", "running")}


def test_one_thread_waits_for_a_controller_that_does_not_answer() -> None:
    asked: list[int] = []
    back = threading.Event()

    def ask() -> Mapping[str, Application]:
        asked.append(threading.get_ident())
        assert back.wait(60)
        return APPLICATIONS

    async def main() -> None:
        following = Following(ask, max_age_s=0.01, wait_s=0.01)
        for _ in range(5):
            assert await following.now() == {}
            await asyncio.sleep(0.02)
        assert len(asked) == 1
        back.set()
        while not await following.now():
            await asyncio.sleep(0.02)
        assert await following.now() == APPLICATIONS

    asyncio.run(main())


def test_an_answer_for_which_nobody_waits_any_more_is_known_all_the_same() -> None:
    asked: list[str] = []
    slow = threading.Event()

    def ask() -> Mapping[str, Application]:
        asked.append("")
        assert slow.wait(60)
        return APPLICATIONS

    async def main() -> None:
        following = Following(ask, max_age_s=60.0, wait_s=0.01)
        assert await following.now() == {}
        slow.set()
        async with asyncio.timeout(10):
            while await following.now() != APPLICATIONS:
                await asyncio.sleep(0.01)
        assert len(asked) == 1

    asyncio.run(main())


def test_what_was_known_last_holds_while_the_controller_is_away() -> None:
    answers = [APPLICATIONS, None]

    def ask() -> Mapping[str, Application]:
        answer = answers.pop(0) if answers else None
        if answer is None:
            raise ConnectionError("the controller is away")
        return answer

    async def main() -> None:
        following = Following(ask, max_age_s=0.0)
        for _ in range(3):
            assert await following.now() == APPLICATIONS

    asyncio.run(main())


def test_what_has_changed_is_not_answered_from_before() -> None:
    """Though one answer is young, and another one under way."""
    asked: list[str] = []
    slow = threading.Event()

    def ask() -> Mapping[str, Application]:
        asked.append("")
        number = len(asked)
        if number == 2:
            assert slow.wait(60)
        return {"tts": Application("tts", "Fused", "running", version=str(number))}

    async def main() -> None:
        following = Following(ask, max_age_s=60.0)
        assert [(await following.now())["tts"].version for _ in range(2)] == ["1", "1"]
        following.renew()
        waiting = asyncio.create_task(following.now())
        while len(asked) < 2:
            await asyncio.sleep(0.01)
        following.renew()
        assert (await following.now())["tts"].version == "3"
        slow.set()
        await waiting
        assert (await following.now())["tts"].version == "3"
        assert len(asked) == 3

    asyncio.run(main())


def replica(state: str) -> dict[str, str]:
    return {"state": state, "replica_id": f"{state.lower()}-id"}


def details(**changes: Any) -> dict[str, Any]:
    """As Serve tells of an application, in what is read of it."""
    config = {
        "name": "a",
        "import_path": "serve_app.app:build_model",
        "args": {"model": "/data/checkpoints/voices", "placement": "fused"},
    }
    states = ("RUNNING", "STARTING", "STOPPING")
    replicas = [replica(state) for state in states]
    told = {
        "status": "RUNNING",
        "message": "",
        "deployed_app_config": config,
        "deployments": {"Fused": {"replicas": replicas}},
    }
    return {**told, **changes}


@pytest.mark.parametrize(
    ("config", "limit_s"), [({"graceful_shutdown_timeout_s": 685.36}, 685.36), ({}, 20.0)]
)
def test_replicas_that_are_to_go_are_told_of_with_their_time(
    config: dict[str, Any], limit_s: float
) -> None:
    replicas = [replica("RUNNING"), replica("STOPPING")]
    ingress = {"replicas": replicas, "deployment_config": config}
    found = application_of("a", details(deployments={"Ingress": ingress}))
    assert found.leaving == {"stopping-id": limit_s}


def with_args(**args: Any) -> dict[str, Any]:
    config = details()["deployed_app_config"]
    return {**config, "args": {**config["args"], **args}}


def test_an_application_is_read_from_what_serve_tells() -> None:
    found = application_of("a", details())
    assert (found.name, found.entry, found.state, found.reason) == ("a", "Fused", "running", None)
    assert found.replicas == {"Fused": {"ready": 1, "total": 2}}
    assert found.label == "voices"
    assert found.known_as == {"/data/checkpoints/voices", "voices"}


def test_an_application_that_is_not_built_yet_is_expected_by_its_name() -> None:
    named = with_args(served_model_name="narrator")
    told = details(status="DEPLOYING", deployments={}, deployed_app_config=named)
    found = application_of("a", told)
    assert (found.entry, found.state, found.replicas) == ("Fused", "starting", {})
    assert (found.label, found.known_as) == (
        "narrator",
        {"narrator", *application_of("a", details()).known_as},
    )


@pytest.mark.parametrize(
    ("args", "is_named"),
    [
        ({"model": "Qwen/Qwen3-TTS-12Hz-1.7B-Base"}, True),
        ({"model": "/data/current", "served_model_name": "narrator"}, True),
        ({"served_model_name": "narrator"}, True),
        # The folder that a link leads to has a name of its own.
        ({"model": "/data/current"}, False),
        ({"model": "~/voices/current"}, False),
        ({}, False),
    ],
)
def test_only_of_some_applications_the_models_name_is_known_before_it_is_there(
    args: dict[str, Any], is_named: bool
) -> None:
    config = {"import_path": "serve_app.app:build_model", "args": args}
    told = details(status="DEPLOYING", deployments={}, deployed_app_config=config)
    assert application_of("a", told).is_named is is_named


def test_what_others_serve_is_no_model() -> None:
    other = {"name": "b", "import_path": "theirs:app"}
    told = details(deployed_app_config=other, deployments={"Theirs": {"replicas": []}})
    assert application_of("b", told).entry == ""


def test_a_change_that_replaces_the_replicas_is_another_version() -> None:
    before = application_of("a", details())
    other = application_of("a", details(deployed_app_config=with_args(profile="latency")))
    assert other.version != before.version
    in_place = {**details()["deployed_app_config"], "deployments": [{"name": "Fused"}]}
    assert application_of("a", details(deployed_app_config=in_place)).version == before.version


def test_an_application_that_is_deleted_has_no_configuration_any_more() -> None:
    found = application_of("a", details(status="DELETING", deployed_app_config=None))
    assert (found.entry, found.state) == ("Fused", "stopping")


@pytest.mark.parametrize(
    ("status", "states", "expected"),
    [
        # A replica that comes for more load is not missed, one that was lost is.
        ("UPSCALING", ["RUNNING", "STARTING", "STARTING"], (1, 1)),
        ("UPSCALING", ["STARTING"], (0, 1)),
        ("UNHEALTHY", ["RUNNING", "STARTING"], (1, 2)),
        ("DOWNSCALING", ["RUNNING", "STOPPING"], (1, 1)),
        # Nor one whose node is drained, nor what a new controller has yet to ask.
        ("HEALTHY", ["PENDING_MIGRATION", "STARTING"], (1, 1)),
        ("HEALTHY", ["PENDING_MIGRATION", "RUNNING"], (2, 2)),
        ("HEALTHY", ["RECOVERING", "UPDATING"], (2, 2)),
        ("UNHEALTHY", ["PENDING_MIGRATION", "STARTING", "STARTING"], (1, 2)),
    ],
)
def test_only_replicas_that_should_run_are_missed(
    status: str, states: list[str], expected: tuple[int, int]
) -> None:
    fused = {"status": status, "replicas": [replica(state) for state in states]}
    counts = application_of("a", details(deployments={"Fused": fused})).replicas["Fused"]
    assert (counts["ready"], counts["total"]) == expected


@pytest.mark.parametrize(
    ("least", "status", "states", "is_waking"),
    [
        (0, "UPSCALING", ["STARTING"], True),
        # Nobody asks; it runs; it is replaced or broken; there should be one at any time.
        (0, "HEALTHY", [], False),
        (0, "UPSCALING", ["RUNNING", "STARTING"], False),
        (0, "UPDATING", ["STARTING"], False),
        (0, "UNHEALTHY", ["STARTING"], False),
        (1, "UPSCALING", ["STARTING"], False),
    ],
)
def test_what_may_sleep_is_waking_while_its_first_replica_starts(
    least: int, status: str, states: list[str], is_waking: bool
) -> None:
    fused = {
        "status": status,
        "replicas": [replica(state) for state in states],
        "deployment_config": {"autoscaling_config": {"min_replicas": least}},
    }
    found = application_of("a", details(deployments={"Fused": fused}))
    assert found.waking == ({"Fused"} if is_waking else frozenset())


def test_what_replicas_wait_for_is_told_where_without_them_it_is_not_whole() -> None:
    states = ("RUNNING", "STARTING")
    fused = {"status": "UPDATING", "replicas": [replica(state) for state in states]}
    had, asked = {"GPU": 1.0}, {"GPU": 0.6}
    stage = Deployment(asked, {}, None, {"n": 1}, {}, coming=1, waited_s=(20.0,))
    wanted = {(("GPU", 0.6),): 1}
    look = Look({"n": Node(had, asked, {})}, {("a", "Fused"): stage}, wanted=wanted)
    assert application_of("a", details(deployments={"Fused": fused}), look).lacks == (
        "Fused has no place for 1 of 2 replicas: each takes 0.6 of a GPU, and the only GPU has 0.4"
        " left"
    )
    # More for more load are not missed.
    fused["status"] = "UPSCALING"
    assert application_of("a", details(deployments={"Fused": fused}), look).lacks is None


TRACEBACK = """The deployment failed to start 3 times in a row. Error:
Traceback (most recent call last):
  File "/opt/app/serve_app/models/checkpoint/files.py", line 7, in _opened
serve_app.errors.CheckpointError: /srv/models/voices/anna/model.safetensors: cannot be read"""
CAUSE = "serve_app.errors.CheckpointError: anna/model.safetensors: cannot be read"


@pytest.mark.parametrize(
    ("status", "whole", "fused", "reason"),
    [
        ("DEPLOYING", "", ("UPDATING", ""), None),
        (
            "DEPLOYING",
            "",
            ("UPDATING", f"A replica failed to start with exception. {TRACEBACK}"),
            f"Fused of 'a' failed to start and is tried again: {CAUSE}",
        ),
        ("DEPLOY_FAILED", "Failed to update 'Fused'.", ("DEPLOY_FAILED", TRACEBACK), CAUSE),
        ("DEPLOY_FAILED", f"Deploying app failed:\n{TRACEBACK}\n", None, CAUSE),
        ("DEPLOY_FAILED", "no /model here, and/or a/b/c", None, "no /model here, and/or a/b/c"),
        ("UNHEALTHY", "Fused is unhealthy.", ("UNHEALTHY", "it hangs"), "Fused is unhealthy."),
        ("RUNNING", "", ("HEALTHY", ""), None),
    ],
)
def test_why_an_application_is_not_there_is_one_line_without_folders(
    status: str, whole: str, fused: tuple[str, str] | None, reason: str | None
) -> None:
    deployments = {} if fused is None else {"Fused": {"status": fused[0], "message": fused[1]}}
    details = {"status": status, "message": whole, "deployments": deployments}
    assert application_of("a", details).reason == reason
