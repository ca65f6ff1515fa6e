"""The speech decoder on CUDA: graphs, kernels and dtypes against the eager CPU decode."""

import asyncio
from collections.abc import AsyncGenerator, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from serve_app.config import SpeechDecoderConfig
from serve_app.models.checkpoint.files import Checkpoint, open_checkpoint
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import allow_tf32
from serve_app.models.speech_decoder.algorithms import Trials
from serve_app.models.speech_decoder.network import kernels as kernels_decoder
from serve_app.models.speech_decoder.network.causal import conv_weight
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.network.passes import (
    add_residual,
    depthwise_conv,
    snake_padded,
    waveform,
)
from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder
from serve_app.models.speech_decoder.steps import DecoderSteps
from serve_app.types import CodecFrames
from tests.conftest import TinyCheckpoint
from tests.unit.speech_decoder.waiting import WaitingRunner

SAMPLES_PER_FRAME = 1920
CHUNKS = (1, 2, 4, 8, 12)


@pytest.fixture(autouse=True)
def exact() -> None:
    allow_tf32(False)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: TinyCheckpoint) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint())


def model_of(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> SpeechDecoderModel:
    tensors = checkpoint.speech_tokenizer_tensors("decoder.")
    return SpeechDecoderModel(checkpoint.spec.speech_decoder).load(tensors, dtype, device)


def random_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2048, (num_frames, 16))


def offline(model: SpeechDecoderModel, codes: np.ndarray) -> np.ndarray:
    given = torch.from_numpy(codes.T.copy())[None].to(model.tables.device)
    return model.decode(given, model.new_state(1))[0].cpu().numpy()


def steps_of(
    checkpoint: Checkpoint, graphs: bool | None = None, trials: Trials | None = None
) -> DecoderSteps:
    return DecoderSteps(
        model_of(checkpoint, torch.float32, "cuda"),
        max_streams=8,
        chunk_frames=CHUNKS,
        batch_sizes=(1, 2, 4, 8),
        trials=trials,
        exact=True,
        graphs=graphs,
    )


@pytest.fixture(scope="module")
def runner(checkpoint: Checkpoint) -> Iterator[WaitingRunner]:
    runner = WaitingRunner(steps_of(checkpoint))
    yield runner
    runner.close()


def through(runner: WaitingRunner, codes: np.ndarray, size: int) -> np.ndarray:
    slot = runner.acquire()
    try:
        futures = [runner.submit(slot, codes[i : i + size]) for i in range(0, len(codes), size)]
        return np.concatenate([future.result(60) for future in futures])
    finally:
        runner.release(slot)


def assert_close_pcm(got: np.ndarray, expected: np.ndarray, steps: int) -> None:
    wanted = np.round(expected.astype(np.float64) * 32767)
    assert got.shape == expected.shape
    assert np.abs(got - wanted).max() <= steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("context", [0, 6, 54])
def test_the_kernels_equal_the_eager_functions(dtype: torch.dtype, context: int) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(3, 50, 96, generator=generator, device="cuda").mul_(4).to(dtype)
    arena = torch.randn(3, 9000, generator=generator, device="cuda").to(dtype)
    history = arena.narrow(1, 64, context * 96).unflatten(1, (context, 96))
    parameters = [torch.rand(96, generator=generator, device="cuda") + 0.5 for _ in range(3)]
    tolerance = (
        {"rtol": 1e-6, "atol": 1e-6} if dtype is torch.float32 else {"rtol": 2**-7, "atol": 1e-3}
    )
    for multiple in (1, 9):
        torch.testing.assert_close(
            kernels_decoder.snake_padded(x, history, *parameters, multiple),
            snake_padded(x, history, *parameters, multiple),
            **tolerance,
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "length"), [(1, 1920), (3, 70), (40, 1920)])
@pytest.mark.parametrize(("width", "dilation"), [(96, 1), (96, 9), (192, 3), (8, 3)])
def test_a_residual_unit_equals_the_eager_function(
    dtype: torch.dtype, rows: int, length: int, width: int, dilation: int
) -> None:
    """Both kernels of (bfloat16, 96 channels), the small and the large one, and the libraries'."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    x, padded = (
        draw(rows, length, width),
        draw(rows, length + 60, width)[:, : length + 6 * dilation],
    )
    padded = padded[:, : padded.shape[1] // dilation * dilation].contiguous()
    length = padded.shape[1] - 6 * dilation
    conv = draw(width, width, 7) / (7 * width) ** 0.5
    mix = draw(width, width) / width**0.5
    activation = tuple(draw(width).abs() * 3 + 0.5 for _ in range(3))
    x = x[:, :length].contiguous()
    x, padded, conv, mix = (tensor.to(dtype) for tensor in (x, padded, conv, mix))
    arguments = (activation, mix, dilation)
    expected = add_residual(
        x.clone().float(), padded.float(), conv_weight(conv.float()), activation,
        mix.float(), dilation,
    )  # fmt: skip
    got = kernels_decoder.add_residual(x.clone(), padded, conv_weight(conv), *arguments)
    if dtype is torch.float32:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)
        return
    # Within the rounding of the eager function in the same type, which rounds twice more.
    eager = add_residual(x.clone(), padded, conv_weight(conv), *arguments).float()
    worst, mean = (eager - expected).abs().max(), (eager - expected).abs().mean()
    assert (got.float() - expected).abs().max() <= 1.5 * worst
    assert (got.float() - expected).abs().mean() <= 1.1 * mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("channels", "columns"), [(96, 7), (96, 500), (48, 130), (4, 8)])
def test_the_convolution_kernels_equal_the_eager_functions(
    dtype: torch.dtype, channels: int, columns: int
) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    padded = torch.randn(3, columns, channels, generator=generator, device="cuda").to(dtype)
    weight = torch.randn(channels, 1, 7, generator=generator, device="cuda").to(dtype)
    bias = torch.randn(channels, generator=generator, device="cuda").to(dtype)
    expected = depthwise_conv(padded.float(), weight.float(), bias.float())
    tolerance = 1e-5 if dtype is torch.float32 else 2**-7
    torch.testing.assert_close(
        kernels_decoder.depthwise_conv(padded, weight, bias).float(),
        expected,
        rtol=tolerance,
        atol=tolerance,
    )
    last = torch.randn(1, channels, 7, generator=generator, device="cuda").mul_(0.03)
    last_bias = torch.tensor([0.1], device="cuda")
    expected = waveform(padded, last, last_bias)
    torch.testing.assert_close(
        kernels_decoder.waveform(padded, last, last_bias), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("size", [1, 7, 12, 50])
def test_graphs_in_float32_equal_the_cpu(
    runner: WaitingRunner, checkpoint: Checkpoint, size: int
) -> None:
    codes = random_codes(60)
    expected = offline(model_of(checkpoint, torch.float32, "cpu"), codes)
    # One step of int16 for rounding, one for the other order of float sums.
    assert_close_pcm(through(runner, codes, size), expected, steps=2)


@pytest.mark.parametrize("length", [3, 9, 11])
def test_a_final_piece_is_decoded_as_part_of_a_longer_one(
    runner: WaitingRunner, checkpoint: Checkpoint, length: int
) -> None:
    codes = random_codes(12 + length)
    expected = offline(model_of(checkpoint, torch.float32, "cpu"), codes)
    slot = runner.acquire()
    steps = runner.stats()["steps"]
    futures = [runner.submit(slot, codes[:12]), runner.submit(slot, codes[12:], final=True)]
    got = np.concatenate([future.result(60) for future in futures])
    runner.release(slot)
    assert_close_pcm(got, expected, steps=2)
    assert runner.stats()["steps"] - steps == 2


def test_graphs_equal_eager(runner: WaitingRunner, checkpoint: Checkpoint) -> None:
    eager = WaitingRunner(steps_of(checkpoint, graphs=False))
    try:
        codes = random_codes(40, seed=3)
        assert np.abs(through(runner, codes, 4).astype(int) - through(eager, codes, 4)).max() <= 1
    finally:
        eager.close()


@pytest.mark.parametrize("from_frames", [1, 8])
def test_algorithms_that_were_tried_change_no_sample(
    checkpoint: Checkpoint, from_frames: int
) -> None:
    codes = random_codes(60)
    expected = offline(model_of(checkpoint, torch.float32, "cpu"), codes)
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.benchmark_limit
    tried = WaitingRunner(steps_of(checkpoint, trials=Trials(4, from_frames)))
    try:
        assert (cudnn.benchmark, cudnn.benchmark_limit) == before
        for size in (1, 12):
            assert_close_pcm(through(tried, codes, size), expected, steps=3)
    finally:
        tried.close()


def test_a_row_does_not_depend_on_its_batch(runner: WaitingRunner) -> None:
    streams = [random_codes(24, seed) for seed in range(8)]
    alone = [through(runner, codes, 4) for codes in streams]
    slots = [runner.acquire() for _ in streams]
    futures = [
        [runner.submit(slot, codes[i : i + 4]) for i in range(0, 24, 4)]
        for slot, codes in zip(slots, streams, strict=True)
    ]
    for expected, mine in zip(alone, futures, strict=True):
        together = np.concatenate([future.result(60) for future in mine])
        assert np.abs(together.astype(int) - expected).max() <= 1
    for slot in slots:
        runner.release(slot)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_streams_at_once_yield_their_own_audio(checkpoint: Checkpoint, dtype: str) -> None:
    config = SpeechDecoderConfig.model_validate(
        {"max_streams": 8, "batch_sizes": (1, 2, 4, 8), "dtype": dtype}
    )
    decoder = StreamingSpeechDecoder.load(checkpoint, config, "cuda", exact=True)
    reference = model_of(checkpoint, torch.float32, "cpu")

    async def items(codes: np.ndarray) -> AsyncGenerator[CodecFrames, None]:
        begin = 0
        for size in (*CHUNKS, *CHUNKS):
            await asyncio.sleep(0)
            yield CodecFrames(codes[begin : begin + size], begin)
            begin += size

    async def listen(codes: np.ndarray) -> np.ndarray:
        return np.concatenate([chunk.samples async for chunk in decoder.pcm(items(codes))])

    async def all_of(streams: list[np.ndarray]) -> list[np.ndarray]:
        return await asyncio.gather(*(listen(codes) for codes in streams))

    streams = [random_codes(54, seed) for seed in range(8)]
    try:
        heard = asyncio.run(all_of(streams))
        assert decoder.stats()["streams"] == 0
    finally:
        decoder.close()
    for codes, samples in zip(streams, heard, strict=True):
        expected = offline(reference, codes)
        if dtype == "float32":
            assert_close_pcm(samples, expected, steps=2)
        else:
            error = samples / 32767 - expected
            assert np.sqrt((error**2).mean()) < 0.05 * np.sqrt((expected**2).mean())


def test_memory_is_flat_over_many_streams(runner: WaitingRunner) -> None:
    codes = random_codes(3)
    through(runner, codes, 3)
    before = torch.cuda.memory_allocated()
    for _ in range(100):
        through(runner, codes, 3)
    assert torch.cuda.memory_allocated() == before


class TestBatchGraphs:
    """The generic owner of graphs, on a function with state."""

    def graphs(self, total: Tensor) -> BatchGraphs:
        def add(slots: Tensor, values: Tensor) -> Tensor:
            total.index_add_(0, slots, values)
            return total[slots] * 2

        def inputs(rows: int) -> tuple[Tensor, ...]:
            last = total.shape[0] - 1
            return torch.full((rows,), last, device="cuda"), torch.ones(rows, 3, device="cuda")

        graphs = BatchGraphs(inputs, add, [4, 1, 2])
        with torch.cuda.stream(torch.cuda.Stream()):
            graphs.capture_all()
            torch.cuda.current_stream().synchronize()
        return graphs

    def test_pads_with_scratch_rows_only(self) -> None:
        total = torch.zeros(9, 3, device="cuda")
        graphs = self.graphs(total)
        assert graphs.captured == (1, 2, 4)
        full = torch.full((4, 3), 5.0, device="cuda")
        graphs(torch.tensor([0, 1, 2, 3], device="cuda"), full)
        got = graphs(torch.tensor([0, 4, 5], device="cuda"), full[:3])
        assert got.tolist() == [[20.0] * 3, [10.0] * 3, [10.0] * 3]
        assert total[:8, 0].tolist() == [10.0, 5.0, 5.0, 5.0, 5.0, 5.0, 0.0, 0.0]
        graphs.close()

    def test_accepts_inputs_on_the_host(self) -> None:
        graphs = self.graphs(torch.zeros(9, 3, device="cuda"))
        got = graphs(torch.tensor([1]), torch.ones(1, 3).pin_memory())
        assert got.tolist() == [[2.0] * 3]
        graphs.close()
