"""The channel between two processes on one GPU: CUDA IPC buffers, and the socket, against the same
process.
"""

import pytest
import torch

from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.client import RemoteFrames
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.random_checkpoint.write import write_checkpoint
from tests.parity.channel import frame_server, random_batch


@pytest.mark.parametrize("channel", ["auto", "socket"])
def test_another_process_on_the_same_gpu_gives_the_same_codes(tmp_path, channel) -> None:
    path = tmp_path / "checkpoint"
    write_checkpoint(path, size="tiny", variant="custom_voice", device="cuda")
    local = InProcessFrames.load(
        open_checkpoint(path), CodePredictorConfig(batch_sizes=(1, 4, 16)), "cuda"
    )
    local.capture()
    with frame_server(path, "cuda") as server:
        client = RemoteFrames(lambda: server.endpoint, channel=channel)
        for rows in (1, 3, 4, 16, 1, 9):
            width = local.predictor.spec.talker_hidden_size
            batch = random_batch(rows, width, local.hidden_dtype, "cuda", rows)
            for _ in range(3):
                assert torch.equal(client.predict(batch), local.predict(batch))
        assert client.transport == ("cuda_ipc" if channel == "auto" else "unix")
        client.close()
