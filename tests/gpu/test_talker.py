"""Talker and code predictor on CUDA: graph = eager, batch = singles, no hidden synchronisation in a
step.

Greedy argmax over random weights meets near ties, where bf16 kernels of another batch size may
choose differently and the streams part for good. So whole streams are compared where the arithmetic
is the same, and elsewhere one frame at a time from a common past (`done` frames), as the share of
equal codes. Each engine has a process of its own.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.client import RemoteFrames
from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.code_predictor.channel.server import FrameServer
from serve_app.models.random_checkpoint.write import write_checkpoint
from serve_app.protocols import require
from tests.gpu.apart import apart
from tests.parity.channel import Listed
from tests.parity.engines import assert_same_codes, open_talker, request, speak

SIZES = tuple(os.environ.get("TTS_GPU_SIZES", "0.6b").split(","))
BATCHES = (1, 2, 4, 8, 16)
TEXTS = ["Hello there.", "A longer sentence that takes a while.", "Bonjour!", "One two three four."]
SERVED = {
    "max_model_len": 1024,
    "max_num_batched_tokens": 1024,
    "max_num_seqs": 16,
    "block_size": None,
}


@pytest.fixture(scope="module", params=SIZES)
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / request.param
    write_checkpoint(
        folder, size=request.param, variant="custom_voice", eos="unreachable", device="cuda"
    )
    return folder


@pytest.fixture(scope="module")
def frames(path):
    config = CodePredictorConfig(batch_sizes=BATCHES)
    frames = InProcessFrames.load(open_checkpoint(path), config, "cuda")
    frames.capture()
    return frames


def batch(frames: InProcessFrames, rows: int, greedy: bool = True) -> FrameBatch:
    generator = torch.Generator("cuda").manual_seed(rows)
    width = frames.predictor.spec.talker_hidden_size
    options = {"device": "cuda", "generator": generator}
    return FrameBatch(
        torch.randn(rows, width, **options).to(frames.hidden_dtype),
        torch.randint(0, 2048, (rows,), **options),
        torch.randint(0, 1 << 40, (rows,), **options),
        torch.randint(0, 4000, (rows,), **options),
        torch.full((rows,), 0.0 if greedy else 0.9, device="cuda"),
        torch.full((rows,), 50, device="cuda", dtype=torch.int64),
        torch.ones(rows, device="cuda"),
    )


@pytest.mark.parametrize("greedy", [True, False], ids=["greedy", "sampled"])
@pytest.mark.parametrize("rows", BATCHES)
def test_predictor_graph_equals_eager(frames, rows, greedy) -> None:
    given = batch(frames, rows, greedy)
    captured = frames.predict(given).clone()
    assert torch.equal(captured, frames.predictor.predict(given))
    assert torch.equal(captured, frames.predict(given)), "a replay changed its answer"


def test_predictor_padding_changes_nothing(frames) -> None:
    given = batch(frames, 5)
    padded = frames.predict(given).clone()
    torch.manual_seed(0)
    assert torch.equal(padded, frames.predict(given))
    first = FrameBatch(*(t[:4] for t in given.tensors()))
    same = (frames.predict(first) == padded[:4]).float().mean()
    assert same > 0.9, f"{same:.0%} of the codes survive another batch size"


def test_remote_frames_equal_in_process_frames(path) -> None:
    """Over a socket; CUDA IPC needs a second process (tests/gpu/test_channel.py)."""
    config = CodePredictorConfig(batch_sizes=BATCHES)
    server = FrameServer.load(open_checkpoint(path), config, "cuda")
    with server.serve():
        client = RemoteFrames(Listed(server.endpoint()), max_rows=16, channel="socket")
        given = batch(server.frames.local, 8)
        assert torch.equal(client.predict(given), server.frames.local.predict(given))
        assert client.transport == "unix"
        client.close()


def teacher_forced(
    engine, streams: list[np.ndarray], cuts: list[int], frames: int = 2
) -> np.ndarray:
    """Continue each stream for `frames` frames from each cut: int64 [cuts, streams, frames, Q]."""
    out = []
    for cut in cuts:
        requests = [
            request(TEXTS[i % len(TEXTS)], seed=i, max_new_tokens=cut + frames)
            for i in range(len(streams))
        ]
        out.append(np.stack(speak(engine, requests, done=[s[:cut] for s in streams])))
    return np.stack(out)


def continued(
    path: Path, cuda_graphs: bool, streams: list[np.ndarray] | None = None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Streams (given, or made here), the first request's codes alone, and two frames from each of
    several places of each stream.
    """
    requests = [request(TEXTS[i % len(TEXTS)], seed=i, max_new_tokens=24) for i in range(16)]
    engine = open_talker(path, device="cuda", cuda_graphs=cuda_graphs, **SERVED)
    streams = speak(engine, requests) if streams is None else streams
    alone = speak(engine, requests[:1])[0]
    return streams, alone, teacher_forced(engine, streams, [4, 9, 14, 19])


def test_full_graphs_equal_eager(path) -> None:
    """The first decoded frame after a prefill comes from a graph; its past is the same in both
    engines.
    """
    streams, alone, forced_eager = apart(continued, path, False)
    _, alone_graph, forced_graph = apart(continued, path, True, streams)
    assert_same_codes(alone_graph, alone, "one stream, graph against eager:")
    for frame in (0, 1):
        same = (forced_graph[:, :, frame, 0] == forced_eager[:, :, frame, 0]).mean()
        print(f"frame {frame} after the prefill: {same:.1%} of code 0 equal")
        assert same > 0.9


def checked(path: Path) -> set[str]:
    """Speak under the check; how strict it says it is."""
    from vllm.utils import gpu_sync_debug

    engine = open_talker(path, device="cuda", cuda_graphs=True, **SERVED)
    speak(engine, [request(text, max_new_tokens=12) for text in TEXTS])
    require(engine.health())
    return {value for value in vars(gpu_sync_debug).values() if isinstance(value, str)}


def test_steps_run_under_the_synchronisation_check(path) -> None:
    """The check (tests/gpu/conftest.py) raises inside the step, which would fail every stream."""
    assert "error" in apart(checked, path)
