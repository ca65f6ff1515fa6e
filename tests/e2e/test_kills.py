"""What clients see when a process of a stage is killed or stopped under load, with two replicas of
each."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import yaml

from serve_app import serve_config
from tests.e2e.conftest import CONFIGS, Server, run_server
from tests.waiting import wait_until

NUM_STREAMS = 3
NUM_FRAMES = 40
BODY = {
    "model": "tts-1",
    "input": "One, two, three: this is a test.",
    "voice": "emma",
    "seed": 7,
    "response_format": "pcm",
    "min_new_tokens": NUM_FRAMES,
    "max_new_tokens": NUM_FRAMES,
}
# Whoever waits for a replica that is gone waits for longer than a client does here: nothing can be
# made good by a deadline, only by the news of a death.
PATIENCE_S = 300.0
CLIENT_S = 60.0
# Nor does Serve find out while a test runs who hangs: the streams have to.
HEALTH_S = 120.0
REPLACED_WITHIN_S = 240.0
# A look at all processes takes tens of milliseconds of a core, which what starts can use.
LOOK_S = 0.5
# While a replica starts, clients rest between two streams, or they would have most of two cores.
REST_S = 2.0
# A resumed stream is decoded in other chunks, whose sums are rounded from another order.
TOLERANCE_LSB = 2


@pytest.fixture(scope="module")
def pair_of(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Server]]:
    """A server with two replicas of each stage of a placement, one at a time."""
    running: dict[str, Server] = {}
    with ExitStack() as stack:

        def pair(placement: str) -> Server:
            if placement not in running:
                stack.close()
                running.clear()
                folder = Path(
                    stack.enter_context(TemporaryDirectory(prefix="tts-e2e-", dir="/tmp"))
                )
                path = folder / "serve.yaml"
                path.write_text(yaml.safe_dump(doubled(serve_config.load(CONFIGS[placement]))))
                server = contextmanager(run_server)(placement, folder, request.config, path)
                running[placement] = stack.enter_context(server)
            return running[placement]

        yield pair


def doubled(config: dict[str, Any]) -> dict[str, Any]:
    (application,) = config["applications"]
    args = application["args"]
    for stage in ("talker", "code_predictor", "speech_decoder"):
        args[stage]["num_cpus"] = 0.1
    args["talker"] |= {"max_num_seqs": 8, "max_model_len": 512}
    args["ingress"] = {
        "num_cpus": 0.1,
        "first_audio_timeout_s": PATIENCE_S,
        "chunk_timeout_s": PATIENCE_S,
        "resume_timeout_s": PATIENCE_S,
    }
    for deployment in application["deployments"]:
        replicas = 1 if deployment["name"] == "Ingress" else 2
        deployment["autoscaling_config"] = {
            "min_replicas": replicas,
            "max_replicas": replicas,
            "target_ongoing_requests": 48,
        }
        deployment["health_check_timeout_s"] = HEALTH_S
    return config


class Load:
    """Clients that ask again and again; a context, at whose end all have their last answer."""

    def __init__(self, server: Server) -> None:
        self._url = f"{server.url}/v1/audio/speech"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(NUM_STREAMS)]
        self._rest_s = 0.0
        self.sent = 0
        self.under_way = 0
        self.answers: list[bytes] = []
        self.failures: list[str] = []

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, condition: Callable[[], object]) -> None:
        wait_until(condition, CLIENT_S, told=self.failures)

    def wait_at_rest(self, condition: Callable[[], object]) -> None:
        """For a replica that starts; each client goes on, but no more than it has to."""
        self._rest_s = REST_S
        wait_until(condition, REPLACED_WITHIN_S, every_s=LOOK_S, told=self.failures)
        self._rest_s = 0.0

    def _ask(self) -> None:
        while not self._stopping.is_set():
            self.sent += 1
            number = self.sent
            try:
                with httpx.stream("POST", self._url, json=BODY, timeout=CLIENT_S) as answer:
                    answer.raise_for_status()
                    data = b""
                    for piece in answer.iter_raw():
                        self.under_way = max(self.under_way, number)
                        data += piece
                    self.answers.append(data)
            except httpx.HTTPError as error:
                self.failures.append(f"request {number}: {error!r}")
            self._stopping.wait(self._rest_s)


def ask(server: Server) -> bytes:
    answer = httpx.post(f"{server.url}/v1/audio/speech", json=BODY, timeout=CLIENT_S)
    return answer.raise_for_status().content


def all_ready(server: Server) -> bool:
    replicas = httpx.get(f"{server.url}/health", timeout=10).json()["replicas"]
    return all(count["ready"] == count["total"] for count in replicas.values())


def replica_of(name: str) -> Callable[[Server], psutil.Process]:
    return lambda server: server.replicas()[name][0]


def fused_child(server: Server) -> psutil.Process:
    """The process of the stages: a child, or the standby whose guard is one."""
    for child in server.replicas()["Fused"][0].children():
        command = child.cmdline()
        if "serve_app.models.fused.process" in command:
            return child
        if command[:2] == ["/bin/sh", "-c"] and "kill -9" in command[2]:
            return psutil.Process(int(command[-1]))
    raise AssertionError("the replica has no process of the stages")


def same_audio(answers: list[bytes], expected: np.ndarray) -> None:
    for answer in answers:
        samples = np.frombuffer(answer, np.int16)
        assert samples.shape == expected.shape
        difference = np.abs(samples.astype(np.int32) - expected.astype(np.int32))
        assert difference.max() <= TOLERANCE_LSB


def survives_a_stop(pair: Server, victim: Callable[[Server], psutil.Process]) -> None:
    """The streams of a stopped process go on elsewhere."""
    stopped = victim(pair)
    with Load(pair) as load:
        load.wait_for(lambda: len(load.answers) >= NUM_STREAMS)
        stopped.suspend()
        try:
            # All that were under way, and others.
            last = load.sent
            load.wait_for(lambda: len(load.answers) > last + NUM_STREAMS)
            assert stopped.status() == psutil.STATUS_STOPPED
        finally:
            stopped.resume()
    same_as_undisturbed(pair, load)


def survives_a_kill(pair: Server, victim: Callable[[Server], psutil.Process]) -> None:
    """No request fails because of it, and none waits for the replica that is gone."""
    with Load(pair) as load:
        # One that was stopped for too long may have been replaced meanwhile.
        load.wait_at_rest(lambda: all_ready(pair))
        load.wait_for(lambda: len(load.answers) >= NUM_STREAMS)
        stages = {name for name in pair.replicas() if name != "Ingress"}
        before = {p.pid for name in stages for p in pair.replicas()[name]}
        victim(pair).kill()
        killed_after = load.sent
        # With one replica left, and while the other one is started again.
        load.wait_for(lambda: load.under_way > killed_after + NUM_STREAMS)

        def replaced() -> bool:
            now = {p.pid for name in stages for p in pair.replicas()[name]}
            return len(now) == len(before) and now != before and all_ready(pair)

        load.wait_at_rest(replaced)
        last = load.sent
        load.wait_for(lambda: load.under_way > last + NUM_STREAMS)
    same_as_undisturbed(pair, load)


def same_as_undisturbed(pair: Server, load: Load) -> None:
    assert not load.failures
    same_audio(load.answers, np.frombuffer(ask(pair), np.int16))


# In the order of placements: each takes a server's start. A stopped decoder is left out, since its
# streams are told to go on as those of a stopped replica of `fused` are.
@pytest.mark.parametrize(
    ("placement", "victim", "survives"),
    [
        pytest.param("split", replica_of("CodePredictor"), survives_a_stop, id="stop predictor"),
        pytest.param("split", replica_of("Talker"), survives_a_stop, id="stop talker"),
        pytest.param("split", replica_of("CodePredictor"), survives_a_kill, id="kill predictor"),
        pytest.param("split", replica_of("Talker"), survives_a_kill, id="kill talker"),
        pytest.param("split", replica_of("SpeechDecoder"), survives_a_kill, id="kill decoder"),
        pytest.param("fused", replica_of("Fused"), survives_a_stop, id="stop replica of fused"),
        pytest.param("fused", replica_of("Fused"), survives_a_kill, id="kill replica of fused"),
        pytest.param("fused", fused_child, survives_a_kill, id="kill stages of fused"),
    ],
)
def test_a_lost_process_costs_no_request(
    pair_of: Callable[[str], Server],
    placement: str,
    victim: Callable[[Server], psutil.Process],
    survives: Callable[[Server, Callable[[Server], psutil.Process]], None],
) -> None:
    survives(pair_of(placement), victim)
