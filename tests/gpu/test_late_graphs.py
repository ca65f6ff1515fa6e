"""What is decoded while the speech decoder's large graphs are still being captured."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.config import SpeechDecoderConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.cuda_graph import GraphRunner
from serve_app.models.random_checkpoint.write import write_checkpoint
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.steps import DecoderSteps, Piece

ROWS, FRAMES = 11, 8
STARTS = 6
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> SpeechDecoderModel:
    """In full size: small matrices are multiplied without a workspace."""
    folder: Path = tmp_path_factory.mktemp("full") / "0.6b"
    write_checkpoint(folder, size="0.6b", variant="custom_voice", device="cuda")
    checkpoint = open_checkpoint(folder)
    tensors = checkpoint.speech_tokenizer_tensors("decoder.")
    return SpeechDecoderModel(checkpoint.spec.speech_decoder).load(tensors, torch.bfloat16, "cuda")


@pytest.mark.parametrize("alone", [False, True])
def test_the_calls_before_a_capture_run_beside_it_unless_it_is_alone(alone: bool) -> None:
    streams: list[torch.cuda.Stream] = []

    def double(values: torch.Tensor) -> torch.Tensor:
        streams.append(torch.cuda.current_stream())
        return values * 2

    values = torch.ones(4, device="cuda")
    torch.cuda.synchronize()
    runners: list[GraphRunner] = []
    # More than PyTorch has streams: each one it has is captured on once.
    for _ in range(40):
        own = torch.cuda.Stream()
        with torch.cuda.stream(own):
            runners.append(GraphRunner(double, (values,), alone=alone))
        before, captured = streams[:-1], streams[-1]
        assert captured == own
        assert all((stream == own) is alone for stream in before)
        assert len({stream.cuda_stream for stream in before}) == 1
        streams.clear()
    assert runners[0]().tolist() == [2.0] * 4
    for runner in runners:
        runner.close()


def test_who_has_called_a_function_has_it_called_once_less() -> None:
    calls: list[bool] = []

    def double(values: torch.Tensor) -> torch.Tensor:
        calls.append(torch.cuda.is_current_stream_capturing())
        return values * 2

    values = torch.ones(4, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for met, before in ((False, 2), (True, 1)):
            runner = GraphRunner(double, (values,), alone=True, met=met)
            assert calls == [False] * before + [True]
            assert runner().tolist() == [2.0] * 4
            runner.close()
            calls.clear()


def test_graphs_that_are_captured_meanwhile_change_no_sample(model: SpeechDecoderModel) -> None:
    codes = np.random.default_rng(0).integers(0, 2048, (ROWS, FRAMES, 16))
    pieces = [Piece(slot, codes[slot], reset=True) for slot in range(ROWS)]

    def step(steps: DecoderSteps) -> np.ndarray:
        launched = steps.launch(pieces, FRAMES)
        assert launched.done is not None
        launched.done.synchronize()
        return launched.samples.copy()

    wrong = compared = 0
    for _ in range(STARTS):
        steps = DecoderSteps(
            model,
            max_streams=64,
            chunk_frames=SpeechDecoderConfig().chunk_frames,
            batch_sizes=BATCH_SIZES,
        )
        capturing = threading.Thread(target=steps.capture_rest, args=(lambda: False,))
        capturing.start()
        while steps.most_rows(FRAMES) < ROWS:
            assert capturing.is_alive()
            time.sleep(0.0001)
        meanwhile: list[np.ndarray] = []
        while capturing.is_alive():
            meanwhile.append(step(steps))
        expected = step(steps)
        compared += len(meanwhile)
        wrong += sum(not np.array_equal(samples, expected) for samples in meanwhile)
        steps.close()
    assert compared > 10 * STARTS
    assert not wrong, f"{wrong} of {compared} steps"
