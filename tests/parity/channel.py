"""Frame servers in processes of their own, and batches to send them."""

import base64
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from serve_app.models.code_predictor.channel.contract import FrameBatch, FrameEndpoint

_SERVER = """
import base64, pickle, sys, time
from pathlib import Path
from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.server import FrameServer
config = CodePredictorConfig(batch_sizes=(1, 4, 16))
server = FrameServer.load(open_checkpoint(Path(sys.argv[1])), config, sys.argv[2])
if cycles := int(sys.argv[4]):
    import torch
    quick = server.frames.local.run
    def slow(*columns):
        torch.cuda._sleep(cycles)
        return quick(*columns)
    slow.max_batch = quick.max_batch
    server.frames.local.run = slow
with server.serve():
    endpoint = server.endpoint(sys.argv[3] or None)
    print("endpoint", base64.b64encode(pickle.dumps(endpoint)).decode(), flush=True)
    time.sleep(600)
"""


class Listed:
    """`FrameSessions` that name the given endpoints, one after the other, the last for ever."""

    is_over = False

    def __init__(self, *endpoints: FrameEndpoint) -> None:
        self.endpoints = list(endpoints)
        self.nodes: list[str] = []

    def connect(self, node: str) -> FrameEndpoint:
        self.nodes.append(node)
        self.is_over = False
        return self.endpoints.pop(0) if len(self.endpoints) > 1 else self.endpoints[0]


@dataclass
class ServerProcess:
    process: subprocess.Popen
    endpoint: FrameEndpoint

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def frame_server(
    path: Path, device: str, node: str = "", sleep_cycles: int = 0
) -> Iterator[ServerProcess]:
    """A running frame server on a checkpoint, for a talker on `node`; killed at the end.

    `sleep_cycles` are spent on the GPU before each frame.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(path), device, node, str(sleep_cycles)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("endpoint "):
                endpoint = pickle.loads(base64.b64decode(line.split()[1]))
                break
        else:
            raise AssertionError("the frame server ended before it listened")
        yield ServerProcess(process, endpoint)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def random_batch(
    rows: int, width: int, dtype: torch.dtype, device: str, seed: int = 0
) -> FrameBatch:
    """Rows with sampling parameters of every kind: greedy, top-k, top-p."""
    generator = torch.Generator(device).manual_seed(seed)
    options = {"device": device, "generator": generator}
    row = torch.arange(rows, device=device)
    return FrameBatch(
        torch.randn(rows, width, **options).to(dtype),
        torch.randint(0, 2048, (rows,), **options),
        torch.randint(0, 1 << 40, (rows,), **options),
        torch.randint(0, 4000, (rows,), **options),
        torch.where(row % 3 == 0, 0.0, 0.9),
        torch.where(row % 2 == 0, 50, 0),
        torch.where(row % 4 == 1, 0.8, 1.0),
    )
