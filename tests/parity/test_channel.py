"""A code predictor in another process gives the codes of one in this process, and is replaced when
it dies.
"""

import math
import time
from dataclasses import replace

import pytest
import torch

from serve_app.config import CodePredictorConfig
from serve_app.errors import StageFailed
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.client import RemoteFrames
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from tests.parity.channel import frame_server, random_batch


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return tiny_checkpoint("custom_voice", "tiny")


@pytest.fixture(scope="module")
def local(path):
    return InProcessFrames.load(open_checkpoint(path), CodePredictorConfig(), "cpu")


def batch_for(local, rows: int, seed: int = 0):
    return random_batch(rows, local.predictor.spec.talker_hidden_size, torch.float32, "cpu", seed)


def test_remote_frames_equal_local_ones_and_survive_the_loss_of_a_predictor(path, local) -> None:
    with frame_server(path, "cpu") as first, frame_server(path, "cpu") as second:
        endpoints = [first.endpoint, second.endpoint]
        client = RemoteFrames(lambda: endpoints.pop(0))
        for rows in (1, 5, 16):
            batch = batch_for(local, rows, rows)
            assert torch.equal(client.predict(batch), local.predict(batch))
        assert client.transport == "unix"
        first.kill()
        batch = batch_for(local, 7, 99)
        assert torch.equal(client.predict(batch), local.predict(batch))
        assert client.reconnects == 1
        client.close()

        # Another node is one whose boot id and /tmp differ: the same server, over TCP.
        elsewhere = replace(second.endpoint, node="another", host="127.0.0.1")
        remote = RemoteFrames(lambda: elsewhere)
        assert torch.equal(remote.predict(batch), local.predict(batch))
        assert remote.transport == "tcp"
        remote.close()


def test_a_client_says_that_it_looks_for_a_predictor() -> None:
    seen: list[float] = []

    def connect():
        seen.append(client.reached_s)
        raise ConnectionError("none is alive")

    client = RemoteFrames(connect)
    began_s = time.monotonic()
    with pytest.raises(StageFailed):
        client.predict(random_batch(1, 8, torch.float32, "cpu"))
    assert set(seen) == {math.inf}
    assert began_s <= client.reached_s <= time.monotonic()


def test_no_predictor_is_a_stage_failure() -> None:
    def connect():
        raise ConnectionError("none is alive")

    client = RemoteFrames(connect)
    with pytest.raises(StageFailed, match="no code predictor"):
        client.predict(random_batch(1, 8, torch.float32, "cpu"))
