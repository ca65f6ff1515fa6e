"""Several checkpoints on one real server: they come, break and go, and leave each other alone."""

import json
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from serve_app import serve_config
from serve_app.types import TaskType
from tests.conftest import TinyCheckpoint
from tests.e2e.conftest import REPOSITORY, Server, run_server
from tests.e2e.streams import CLIENT_S, NUM_FRAMES, Streams, ask

DESCRIBED = {"instructions": "A deep, calm voice."}
# A voice as a vector, as wide as the tiny checkpoint.
CLONED = {"speaker_embedding": [0.1] * 64}
# Generous: two slow cores start processes with a framework each.
START_S = 240.0
REFUSED_S = 30.0


class Several:
    """A server of a config file that may change."""

    def __init__(self, server: Server, path: Path, checkpoint: TinyCheckpoint) -> None:
        self.server = server
        self._path = path
        self._checkpoint = checkpoint

    def serve(self, *models: tuple[str, TaskType, int]) -> None:
        """Have exactly these served from now on, by name, task and seed."""
        write(self._path, self._checkpoint, *models)
        self.server.process.send_signal(signal.SIGHUP)

    def ask(self, **fields: Any) -> httpx.Response:
        return ask(self.server.url, **fields)

    def wait_for(self, model: str, *statuses: int, **fields: Any) -> list[int]:
        """What requests for a model get until the last of `statuses`; others fail."""
        deadline = time.monotonic() + START_S
        seen: list[int] = []
        while not seen or seen[-1] != statuses[-1]:
            assert time.monotonic() < deadline, (model, seen)
            answer = self.ask(model=model, **(fields or DESCRIBED))
            if not seen or answer.status_code != seen[-1]:
                seen.append(answer.status_code)
            assert answer.status_code in statuses, answer.text
            # Nobody waits for a model on its way out as for a first audio.
            assert answer.status_code == 200 or answer.elapsed.total_seconds() < REFUSED_S
            if answer.status_code == 503:
                code = answer.json()["error"]["code"]
                assert code == ("service_unavailable" if 200 in seen else "model_starting")
                assert int(answer.headers["retry-after"]) >= 1
            time.sleep(0.2)
        return seen


def write(path: Path, checkpoint: TinyCheckpoint, *models: tuple[str, TaskType, int]) -> None:
    """A config file of these models, derived from the one that is shipped."""
    config = yaml.safe_load((REPOSITORY / "configs/serve.several.yaml").read_text())
    front, model = config["applications"][:2]
    front["args"] = {"streams": 8}
    front["deployments"][0]["user_config"] = {"default_model": models[0][0]}
    small = {"talker": {"max_num_seqs": 4, "max_model_len": 256}}
    config["applications"] = [front] + [
        {
            **model,
            "name": name,
            "args": {
                "model": str(checkpoint(task, seed=seed)),
                "served_model_name": name,
                "placement": "fused",
                **small,
            },
        }
        for name, task, seed in models
    ]
    assert not list(serve_config.find_problems(config))
    path.write_text(json.dumps(config))


FIRST: tuple[tuple[str, TaskType, int], ...] = (
    ("voices", "custom_voice", 0),
    ("design", "voice_design", 0),
)


@pytest.fixture(scope="module")
def several(request: pytest.FixtureRequest, tiny_checkpoint: TinyCheckpoint) -> Iterator[Several]:
    with tempfile.TemporaryDirectory(prefix="tts-e2e-", dir="/tmp") as name:
        path = Path(name) / "several.yaml"
        write(path, tiny_checkpoint, *FIRST)
        for server in run_server("fused", Path(name), request.config, path, FIRST[0][0]):
            found = Several(server, path, tiny_checkpoint)
            for model, _, _ in FIRST:
                found.wait_for(model, 503, 200)
            yield found


def children_of(server: Server, application: str) -> list[psutil.Process]:
    """The processes that hold the stages of an application."""
    title = f"ray::ServeReplica:{application}:"
    return [
        process
        for process in server.process.children(recursive=True)
        if " ".join(process.cmdline()).startswith(title)
    ]


def samples(several: Several, **fields: Any) -> bytes:
    content = several.ask(**fields).raise_for_status().content
    assert len(content) == NUM_FRAMES * 1920 * 2
    return content


def test_each_request_is_answered_by_the_model_that_can(several: Several) -> None:
    listed = httpx.get(f"{several.server.url}/v1/models").json()["data"]
    assert [(m["id"], m["task_type"]) for m in listed] == [
        ("voices", "CustomVoice"),
        ("design", "VoiceDesign"),
    ]
    spoken = samples(several, voice="serena")
    assert spoken == samples(several, model="voices", voice="serena")
    described = samples(several, **DESCRIBED)
    assert described == samples(several, model="design", **DESCRIBED)
    other = samples(several, instructions="A cheerful child.")
    assert len({spoken, described, other}) == 3
    refused = several.ask(model="design", voice="serena")
    assert refused.status_code == 400
    assert "'voices' has" in refused.json()["error"]["message"]
    assert several.ask(model="third").status_code == 404


def test_each_model_has_its_health_and_its_metrics(several: Several) -> None:
    url = several.server.url
    # A replica of the one that is ready later may be counted before it runs.
    end_s = time.monotonic() + 60
    while (health := httpx.get(f"{url}/health").json())["status"] != "healthy":
        assert time.monotonic() < end_s, health
        time.sleep(0.2)
    assert {m["model"]: m["application"] for m in health["served"]} == {
        "voices": "voices",
        "design": "design",
    }
    assert all(m["replicas"]["Fused"] == {"ready": 1, "total": 1} for m in health["served"])
    assert set(httpx.get(f"{url}/version").json()["models"]) == {"voices", "design"}
    wanted = [
        'tts_model_ready{model="voices"} 1',
        'tts_model_ready{model="design"} 1',
        'tts_replicas{application="design",deployment="Fused",state="ready"} 1',
    ]
    text = httpx.get(f"{url}/metrics", timeout=20).text
    assert [line for line in wanted if line not in text] == []


def test_what_breaks_one_model_is_not_noticed_by_another(several: Several) -> None:
    whole = samples(several, voice="serena")
    with Streams(several.server.url, model="voices", voice="serena") as streams:
        streams.until(lambda: streams.answers)
        for process in children_of(several.server, "design"):
            process.kill()
        streams.until(lambda: len(streams.answers) >= 4)
        assert httpx.get(f"{several.server.url}/ready").status_code == 200
    assert streams.failures == []
    assert set(streams.answers) == {whole}
    # Whoever asked for the broken one waits for its replacement.
    assert samples(several, model="design", **DESCRIBED)


def test_a_model_comes_and_goes_while_another_speaks(several: Several) -> None:
    whole = samples(several, voice="serena")
    with Streams(several.server.url, model="voices", voice="serena") as streams:
        several.serve(*FIRST, ("third", "base", 0))
        seen = several.wait_for("third", 404, 503, 200, **CLONED)
        assert seen[-2:] == [503, 200]
        # Nothing but a model that clones can speak with it.
        cloned = samples(several, **CLONED)
        assert cloned == samples(several, model="third", **CLONED)
        refused = several.ask(model="voices", **CLONED)
        assert "'third' does" in refused.json()["error"]["message"]
        several.serve(*FIRST)
        several.wait_for("third", 200, 503, 404, **CLONED)
        count = len(streams.answers)
        streams.until(lambda: len(streams.answers) > count)
    assert streams.failures == []
    assert set(streams.answers) == {whole}


def test_settings_change_while_it_runs(several: Several) -> None:
    several.serve(*reversed(FIRST))
    deadline = time.monotonic() + CLIENT_S
    while httpx.get(f"{several.server.url}/v1/models").json()["data"][0]["id"] != "design":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert len(children_of(several.server, "voices")) == 1
