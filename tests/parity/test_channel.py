"""A code predictor in another process gives the codes of one in this process, and is replaced when
it dies.
"""

from dataclasses import replace

import pytest
import torch

from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.client import RemoteFrames
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from tests.parity.channel import Listed, frame_server, random_batch


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return tiny_checkpoint("custom_voice", "tiny")


@pytest.fixture(scope="module")
def local(path):
    return InProcessFrames.load(open_checkpoint(path), CodePredictorConfig(), "cpu")


def batch_for(local, rows: int, seed: int = 0):
    return random_batch(rows, local.predictor.spec.talker_hidden_size, torch.float32, "cpu", seed)


def test_remote_frames_equal_local_ones_and_survive_the_loss_of_a_predictor(path, local) -> None:
    with frame_server(path, "cpu") as first, frame_server(path, "cpu", "another") as second:
        client = RemoteFrames(Listed(first.endpoint, second.endpoint), max_rows=16)
        for rows in (1, 5, 16):
            batch = batch_for(local, rows, rows)
            assert torch.equal(client.predict(batch), local.predict(batch))
        assert client.transport == "unix"
        first.kill()
        batch = batch_for(local, 7, 99)
        assert torch.equal(client.predict(batch), local.predict(batch))
        assert client.reconnects == 1
        client.close()

        # As from another node: the same server, over TCP.
        remote = RemoteFrames(Listed(replace(second.endpoint, node="another")), max_rows=16)
        assert torch.equal(remote.predict(batch), local.predict(batch))
        assert remote.transport == "tcp"
        remote.close()
