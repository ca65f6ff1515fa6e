"""The channel between two processes on one GPU: CUDA IPC buffers, and the socket, against the same
process.
"""

import threading
from pathlib import Path

import pytest
import torch

from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.client import RemoteFrames
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.random_checkpoint.write import write_checkpoint
from tests.parity.channel import Listed, frame_server, random_batch

SIZES = (1, 4, 16)
# Some two seconds; a frame of the tiny checkpoint takes about one millisecond.
LONG_CYCLES = 3_000_000_000
KILLED_AFTER_S = 0.5


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("channel") / "checkpoint"
    write_checkpoint(path, size="tiny", variant="custom_voice", device="cuda")
    return path


@pytest.fixture(scope="module")
def local(path) -> InProcessFrames:
    config = CodePredictorConfig(batch_sizes=SIZES)
    frames = InProcessFrames.load(open_checkpoint(path), config, "cuda")
    frames.capture()
    return frames


def batch_for(local: InProcessFrames, rows: int):
    width = local.predictor.spec.talker_hidden_size
    return random_batch(rows, width, local.hidden_dtype, "cuda", rows)


@pytest.mark.parametrize("channel", ["auto", "socket"])
def test_another_process_on_the_same_gpu_gives_the_same_codes(path, local, channel) -> None:
    with frame_server(path, "cuda") as server:
        client = RemoteFrames(Listed(server.endpoint), max_rows=16, channel=channel)
        for rows in (1, 3, 4, 16, 1, 9):
            batch = batch_for(local, rows)
            for _ in range(3):
                assert torch.equal(client.predict(batch), local.predict(batch))
        assert client.transport == ("cuda_ipc" if channel == "auto" else "unix")
        client.close()


def test_a_predictor_killed_in_the_middle_of_a_frame_costs_neither_codes_nor_the_stream(
    path, local
) -> None:
    """The first one is busy for seconds with the frame during which it is killed."""
    with (
        frame_server(path, "cuda", sleep_cycles=LONG_CYCLES) as slow,
        frame_server(path, "cuda") as other,
    ):
        client = RemoteFrames(Listed(slow.endpoint, other.endpoint), max_rows=16)
        batch = batch_for(local, 4)
        expected = local.predict(batch)
        assert torch.equal(client.predict(batch), expected)
        killer = threading.Timer(KILLED_AFTER_S, slow.kill)
        killer.start()
        codes = client.predict(batch)
        killer.join()
        assert torch.equal(codes, expected)
        assert client.reconnects == 1, "the frame was done before the predictor was killed"
        client.close()
