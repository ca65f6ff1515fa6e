"""The speech decoder stage: slots, order of service, failures; and the pieces it is built from."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from serve_app.config import SpeechDecoderConfig
from serve_app.errors import CheckpointError, Overloaded, StageFailed, StageUnavailable
from serve_app.models.checkpoint.files import Checkpoint, open_checkpoint
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import resolve_device
from serve_app.models.speech_decoder.jobs import Job
from serve_app.models.speech_decoder.network.causal import (
    causal_conv,
    conv_of_padded,
    conv_weight,
    rotary,
    rotate,
    transposed_conv_of_padded,
    transposed_conv_weight,
    window_mask,
)
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
from serve_app.models.speech_decoder.network.state import DecoderState
from serve_app.models.speech_decoder.runner import SpeechDecoderRunner
from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder
from serve_app.models.speech_decoder.steps import DecoderSteps
from serve_app.types import CodecFrames, PcmChunk
from tests.conftest import TinyCheckpoint

SAMPLES_PER_FRAME = 1920


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: TinyCheckpoint) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint())


@pytest.fixture(scope="module")
def model(checkpoint: Checkpoint) -> SpeechDecoderModel:
    tensors = checkpoint.speech_tokenizer_tensors("decoder.")
    return SpeechDecoderModel(checkpoint.spec.speech_decoder).load(tensors, torch.float32)


class CountingModel(SpeechDecoderModel):
    """A network whose samples tell position and first code, and whose steps can be held back."""

    def __init__(self, template: SpeechDecoderModel) -> None:
        super().__init__(template.spec)
        self.register_buffer("tables", torch.zeros(1), persistent=False)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.steps: list[tuple[int, ...]] = []
        self.error: Exception | None = None

    def decode(self, codes: Tensor, state: DecoderState) -> Tensor:
        self.entered.set()
        assert self.gate.wait(10)
        if self.error is not None:
            raise self.error
        self.steps.append((*codes[:, 0, 0].tolist(), codes.shape[2]))
        frames = state.position[:, None] + torch.arange(codes.shape[2])
        state.position.add_(codes.shape[2])
        marked = (frames + 1000 * codes[:, 0]).double() / 32767
        return marked.repeat_interleave(SAMPLES_PER_FRAME, 1)

    def hold(
        self, runner: SpeechDecoderRunner, slot: int, codes: np.ndarray
    ) -> "Future[np.ndarray]":
        """Start a step that lasts until the gate opens."""
        self.gate.clear()
        self.entered.clear()
        future = runner.submit(slot, codes)
        assert self.entered.wait(10)
        return future


@pytest.fixture
def counting(model: SpeechDecoderModel) -> CountingModel:
    return CountingModel(model)


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


MakeRunner = Callable[..., SpeechDecoderRunner]


@pytest.fixture
def make_runner(counting: CountingModel) -> Iterator[MakeRunner]:
    made: list[SpeechDecoderRunner] = []

    def make(
        max_streams: int = 4, batch_sizes: tuple[int, ...] = (1, 2, 4), **options: Any
    ) -> SpeechDecoderRunner:
        steps = DecoderSteps(
            counting, max_streams=max_streams, chunk_frames=(1, 2, 4), batch_sizes=batch_sizes
        )
        made.append(SpeechDecoderRunner(steps, **options))
        counting.steps.clear()
        return made[-1]

    yield make
    counting.gate.set()
    for runner in made:
        runner.close()


def codes_of(first: int, num_frames: int = 1) -> np.ndarray:
    codes = np.zeros((num_frames, 16), np.int64)
    codes[:, 0] = first
    return codes


async def items(*chunks: CodecFrames) -> AsyncGenerator[CodecFrames, None]:
    for chunk in chunks:
        yield chunk


def growing(num_chunks: int, first: int = 0) -> list[CodecFrames]:
    return [CodecFrames(codes_of(first, 2), 2 * i) for i in range(num_chunks)]


# --- the runner


def test_a_job_longer_than_the_longest_chunk_is_cut(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()
    slot = runner.acquire()
    samples = runner.submit(slot, codes_of(3, 11)).result(10)
    assert samples[::SAMPLES_PER_FRAME].tolist() == [3000 + i for i in range(11)]
    assert [step[-1] for step in counting.steps] == [4, 4, 3]
    assert runner.stats()["frames"] == 11


def test_streams_with_equal_frames_share_a_step(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()
    slots = [runner.acquire() for _ in range(4)]
    blocker = counting.hold(runner, slots[3], codes_of(9, 3))
    futures = [runner.submit(slot, codes_of(i + 1, 2)) for i, slot in enumerate(slots[:3])]
    counting.gate.set()
    assert [future.result(10)[0] for future in futures] == [1000, 2000, 3000]
    blocker.result(10)
    assert counting.steps == [(9, 3), (1, 2, 3, 2)]


def test_first_audio_goes_first_then_who_runs_dry_soonest(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    clock = FakeClock()
    runner = make_runner(max_streams=5, batch_sizes=(1,), clock=clock)
    rich, poor, new, blocker = (runner.acquire() for _ in range(4))
    runner.submit(rich, codes_of(1, 4)).result(10)
    runner.submit(poor, codes_of(2, 1)).result(10)
    runner.submit(blocker, codes_of(4)).result(10)
    counting.steps.clear()
    held = counting.hold(runner, blocker, codes_of(4))
    clock.now += 1
    futures = [
        runner.submit(slot, codes_of(code)) for slot, code in ((rich, 1), (poor, 2), (new, 3))
    ]
    counting.gate.set()
    for future in (held, *futures):
        future.result(10)
    assert [step[0] for step in counting.steps] == [4, 3, 2, 1]


def test_first_audio_overtakes_the_priming_of_a_resumed_stream(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()
    blocker, resumed, new = (runner.acquire() for _ in range(3))
    held = counting.hold(runner, blocker, codes_of(9))
    primed = runner.submit(resumed, codes_of(1, 12), discard=True)
    first = runner.submit(new, codes_of(2))
    counting.gate.set()
    for future in (held, primed, first):
        future.result(10)
    assert [step[0] for step in counting.steps] == [9, 2, 1, 1, 1]


def test_a_chunk_waits_for_company_only_while_its_listener_can_play(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    clock = FakeClock()
    runner = make_runner(patience_s=5.0, clock=clock)
    rich, poor = runner.acquire(), runner.acquire()
    # First audio never waits.
    runner.submit(rich, codes_of(1, 4)).result(10)
    runner.submit(poor, codes_of(2, 1)).result(10)
    counting.steps.clear()
    clock.now -= 1.0  # both have a second more to play
    waiting = runner.submit(rich, codes_of(1, 2))
    also = runner.submit(poor, codes_of(2, 2))
    with pytest.raises(TimeoutError):
        waiting.result(0.2)
    assert counting.steps == []
    clock.now += 1.2  # one of them runs dry soon
    third = runner.submit(poor, codes_of(2, 2))
    for future in (waiting, also, third):
        future.result(10)
    assert sorted(counting.steps[0][:-1]) == [1, 2]


def test_a_job_of_its_own_waits_no_longer_than_the_patience(make_runner: MakeRunner) -> None:
    runner = make_runner(patience_s=0.05)
    slot = runner.acquire()
    runner.submit(slot, codes_of(1, 4)).result(10)
    assert len(runner.submit(slot, codes_of(1, 2)).result(10)) == 2 * SAMPLES_PER_FRAME


def test_a_slot_starts_over_for_its_next_stream(make_runner: MakeRunner) -> None:
    runner = make_runner(max_streams=1)
    for _ in range(3):
        slot = runner.acquire()
        assert runner.submit(slot, codes_of(0, 2)).result(10)[SAMPLES_PER_FRAME] == 1
        runner.release(slot)


def test_a_released_stream_leaves_nothing_to_its_successor(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner(max_streams=1)
    slot = runner.acquire()
    first = counting.hold(runner, slot, codes_of(1, 9))
    abandoned = [first, runner.submit(slot, codes_of(1, 9))]
    runner.release(slot)
    assert all(future.cancelled() for future in abandoned)
    slot = runner.acquire()
    fresh = runner.submit(slot, codes_of(2, 3))
    counting.gate.set()
    assert fresh.result(10)[::SAMPLES_PER_FRAME].tolist() == [2000, 2001, 2002]


def test_discarded_frames_advance_the_state_without_audio(make_runner: MakeRunner) -> None:
    runner = make_runner()
    slot = runner.acquire()
    assert runner.submit(slot, codes_of(0, 6), discard=True).result(10).size == 0
    assert runner.submit(slot, codes_of(0)).result(10)[0] == 6
    assert runner.submit(slot, codes_of(0), reset=True).result(10)[0] == 0


@pytest.mark.parametrize(
    "codes",
    [
        np.zeros((0, 16)),
        np.zeros((2, 15)),
        np.zeros(16),
        np.full((1, 16), 2048),
        np.full((1, 16), -1),
    ],
    ids=["empty", "groups", "flat", "control id", "negative"],
)
def test_codes_that_cannot_be_decoded_are_refused(
    make_runner: MakeRunner, codes: np.ndarray
) -> None:
    runner = make_runner()
    slot = runner.acquire()
    with pytest.raises(StageFailed, match="codes"):
        runner.submit(slot, codes)
    runner.check_health()


def test_a_failing_device_fails_every_stream_and_the_health_check(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()
    counting.gate.clear()
    futures = [runner.submit(runner.acquire(), codes_of(1, n)) for n in (1, 2)]
    counting.error = RuntimeError("device lost")
    counting.gate.set()
    for future in futures:
        with pytest.raises(StageFailed, match="device lost"):
            future.result(10)
    with pytest.raises(StageFailed, match="device lost"):
        runner.check_health()
    with pytest.raises(StageFailed):
        runner.acquire()


def test_a_closed_decoder_is_unavailable(make_runner: MakeRunner, counting: CountingModel) -> None:
    runner = make_runner()
    slot = runner.acquire()
    first = counting.hold(runner, slot, codes_of(1))
    second = runner.submit(slot, codes_of(1, 4))
    closer = threading.Thread(target=runner.close)
    closer.start()
    counting.gate.set()
    closer.join(10)
    assert not closer.is_alive()
    assert first.done()
    with pytest.raises(StageUnavailable):
        second.result(10)
    with pytest.raises(StageUnavailable):
        runner.check_health()
    runner.close()


# --- the stage


@pytest.fixture
def stage(make_runner: MakeRunner) -> StreamingSpeechDecoder:
    return StreamingSpeechDecoder(make_runner(max_streams=2))


def collect(
    decoder: StreamingSpeechDecoder, *chunks: CodecFrames, done: np.ndarray | None = None
) -> list[PcmChunk]:
    async def run() -> list[PcmChunk]:
        return [chunk async for chunk in decoder.pcm(items(*chunks), done)]

    return asyncio.run(run())


def test_each_item_gives_one_chunk(stage: StreamingSpeechDecoder) -> None:
    chunks = collect(
        stage,
        CodecFrames(codes_of(0, 1), 0),
        CodecFrames(codes_of(0, 3), 1),
        CodecFrames(codes_of(0, 0), 4, "stop"),
    )
    assert [chunk.first_sample for chunk in chunks] == [0, 1920, 7680]
    assert [chunk.samples.size for chunk in chunks] == [1920, 5760, 0]
    assert [chunk.codes.shape for chunk in chunks] == [(1, 16), (3, 16), (0, 16)]
    assert [chunk.finish_reason for chunk in chunks] == [None, None, "stop"]
    assert all(chunk.samples.dtype == np.int16 for chunk in chunks)


def test_done_frames_come_before_the_stream(stage: StreamingSpeechDecoder) -> None:
    (chunk,) = collect(stage, CodecFrames(codes_of(0), 7, "length"), done=codes_of(0, 7))
    assert chunk.first_sample == 7 * SAMPLES_PER_FRAME
    assert chunk.samples[0] == 7
    assert chunk.finish_reason == "length"


def test_a_gap_in_the_frames_is_an_error(stage: StreamingSpeechDecoder) -> None:
    with pytest.raises(StageFailed, match="frame 5 follows frame 1"):
        collect(stage, CodecFrames(codes_of(0, 2), 0), CodecFrames(codes_of(0), 5))
    assert stage.stats()["streams"] == 0


def test_a_full_decoder_is_overloaded_before_any_sample(stage: StreamingSpeechDecoder) -> None:
    async def run() -> None:
        open_streams = [stage.pcm(items(*growing(3))) for _ in range(2)]
        for stream in open_streams:
            await anext(stream)
        upstream = items(*growing(1))
        with pytest.raises(Overloaded):
            await anext(stage.pcm(upstream))
        with pytest.raises(StopAsyncIteration):
            await anext(upstream)
        await open_streams[0].aclose()
        assert (await anext(stage.pcm(items(*growing(1))))).first_sample == 0
        await open_streams[1].aclose()

    asyncio.run(run())


def test_a_cancelled_listener_frees_slot_and_upstream(
    stage: StreamingSpeechDecoder, counting: CountingModel
) -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncGenerator[CodecFrames, None]:
        try:
            for chunk in growing(1000):
                yield chunk
        finally:
            closed.set()

    async def listen() -> None:
        async for _ in stage.pcm(endless()):
            counting.gate.clear()

    async def run() -> None:
        task = asyncio.create_task(listen())
        while counting.gate.is_set() or stage.stats()["waiting"] == 0:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stage.stats()["streams"] == 0
        assert closed.is_set()
        counting.gate.set()

    asyncio.run(run())


def test_many_streams_leak_nothing(stage: StreamingSpeechDecoder) -> None:
    async def run() -> None:
        threads = threading.active_count()
        for index in range(200):
            stream = stage.pcm(items(*growing(3, first=index % 30)))
            chunk = await anext(stream)
            assert chunk.samples[0] == index % 30 * 1000
            if index % 2:
                await anext(stream)
            await stream.aclose()
        assert threading.active_count() == threads

    asyncio.run(run())
    assert stage.stats()["streams"] == 0
    assert stage.stats()["waiting"] == 0


def test_it_loads_from_a_checkpoint(checkpoint: Checkpoint) -> None:
    config = SpeechDecoderConfig(max_streams=1)
    decoder = StreamingSpeechDecoder.load(checkpoint, config, "cpu")
    try:
        (chunk,) = collect(decoder, CodecFrames(codes_of(5, 3), 0, "stop"))
        assert chunk.samples.size == 3 * SAMPLES_PER_FRAME
        assert np.abs(chunk.samples).max() > 0
        assert decoder.stats() | {"waiting": 0} == {
            "streams": 0, "max_streams": 1, "waiting": 0, "steps": 1, "frames": 3,
        }  # fmt: skip
        decoder.check_health()
    finally:
        decoder.close()


def test_a_missing_tensor_is_named(checkpoint: Checkpoint) -> None:
    tensors = checkpoint.speech_tokenizer_tensors("decoder.")
    del tensors["decoder.6.conv.bias"]
    with pytest.raises(CheckpointError, match=r"decoder\.decoder\.6\.conv\.bias"):
        SpeechDecoderModel(checkpoint.spec.speech_decoder).load(tensors, torch.float32)


def test_codes_of_another_shape_are_refused_by_the_model(model: SpeechDecoderModel) -> None:
    for shape in ((1, 15, 2), (1, 16, 0), (2, 16, 1)):
        with pytest.raises(ValueError, match="codes"):
            model.decode(torch.zeros(shape, dtype=torch.int64), model.new_state(1))


# --- streaming layers


def test_causal_conv_in_chunks_equals_a_padded_convolution() -> None:
    x = torch.randn(2, 30, 5, dtype=torch.float64)
    weight, bias = torch.randn(4, 5, 7, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = F.conv1d(F.pad(x.transpose(1, 2), (6, 0)), weight, bias).transpose(1, 2)
    history, parts = torch.zeros(2, 6, 5, dtype=torch.float64), []
    for chunk in x.split([1, 2, 20, 7], 1):
        y, history = causal_conv(chunk, history, conv_weight(weight), bias)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), expected)


@pytest.mark.parametrize("dilation", [1, 3, 9])
def test_interleaved_convolutions_equal_a_dilated_one(dilation: int) -> None:
    padded = torch.randn(2, 81, 5, dtype=torch.float64)
    weight = torch.randn(4, 5, 7, dtype=torch.float64)
    expected = F.conv1d(padded.transpose(1, 2), weight, dilation=dilation).transpose(1, 2)
    got = conv_of_padded(padded, conv_weight(weight), None, dilation=dilation)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("stride", "taps"), [(2, 1), (3, 2), (8, 2)])
def test_transposed_conv_equals_the_ordinary_one_cut_on_the_right(stride: int, taps: int) -> None:
    x = torch.randn(2, 11, 5, dtype=torch.float64)
    weight = torch.randn(5, 4, stride * taps, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    full = F.conv_transpose1d(x.transpose(1, 2), weight, bias, stride=stride).transpose(1, 2)
    rearranged = conv_weight(transposed_conv_weight(weight, stride))
    padded = torch.cat((x.new_zeros(2, taps - 1, 5), x), 1)
    got = transposed_conv_of_padded(padded, rearranged, bias.repeat(stride), stride=stride)
    torch.testing.assert_close(got, full[:, : 11 * stride])


def test_a_kernel_that_does_not_fit_its_stride_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple"):
        transposed_conv_weight(torch.zeros(1, 1, 7), 3)


def test_the_window_counts_the_query_itself_and_never_an_empty_cache_entry() -> None:
    mask = window_mask(torch.tensor([0, 1, 9]), 3, window=3)[:, 0].int().tolist()
    assert mask[0] == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert mask[1] == [[0, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert mask[2] == [[1, 1, 1, 0, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]


def test_rotary_products_depend_on_the_distance_only() -> None:
    query, key = torch.randn(2, 1, 1, 8, dtype=torch.float64).unbind(0)
    products = []
    for start in (0, 57):
        cos, sin = rotary(torch.tensor([start]), 4, 8, 1e4, torch.float64)
        rotated_query, rotated_key = (
            rotate(query[None], cos[:, 3:], sin[:, 3:]),
            rotate(key[None], cos[:, :1], sin[:, :1]),
        )
        products.append((rotated_query * rotated_key).sum())
    torch.testing.assert_close(products[0], products[1])


# --- graphs and devices, without CUDA


def test_disabled_graphs_call_the_function_with_the_exact_batch() -> None:
    seen: list[int] = []

    def double(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return x * 2

    graphs = BatchGraphs(lambda rows: (torch.zeros(rows, 3),), double, [1, 4], enabled=False)
    graphs.capture_all()
    assert graphs(torch.ones(3, 3)).tolist() == [[2.0] * 3] * 3
    assert seen == [3]
    assert graphs.pick(2) == 4
    with pytest.raises(ValueError, match="do not fit"):
        graphs(torch.ones(5, 3))
    with pytest.raises(ValueError, match="input 0"):
        graphs(torch.ones(1, 2))
    with pytest.raises(ValueError, match="2 inputs"):
        graphs(torch.ones(1, 3), torch.ones(1, 3))
    graphs.close()
    with pytest.raises(RuntimeError, match="closed"):
        graphs(torch.ones(1, 3))


def test_the_device_is_resolved_with_its_reason() -> None:
    cpu = resolve_device("cpu", "bfloat16")
    assert cpu.device.type == "cpu"
    assert cpu.dtype is torch.bfloat16
    assert "bfloat16" in cpu.reason
    assert resolve_device("cpu", "auto").dtype is torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_absent_is_refused_at_start() -> None:
    with pytest.raises(StageUnavailable, match="no CUDA device"):
        resolve_device("cuda", "auto")
    assert resolve_device("auto", "auto").device.type == "cpu"


def test_words_that_are_no_choice_are_refused() -> None:
    with pytest.raises(ValueError, match="device"):
        resolve_device("tpu", "auto")
    with pytest.raises(ValueError, match="dtype"):
        resolve_device("cpu", "float16")


def submitted(runner: SpeechDecoderRunner, slot: int, code: int) -> "asyncio.Future[np.ndarray]":
    """One frame, with a future of the loop that runs."""
    future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
    runner.enqueue(slot, Job(codes_of(code), False, False, False, future))
    return future


def test_results_reach_an_event_loop_and_its_cancelled_streams_get_none(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()

    async def run() -> list[int]:
        slots = [runner.acquire() for _ in range(3)]
        counting.gate.clear()
        first, gone, last = [
            submitted(runner, slot, number + 1) for number, slot in enumerate(slots)
        ]
        gone.cancel()
        runner.release(slots[1])
        counting.gate.set()
        return [int((await future)[0]) for future in (first, last)]

    assert asyncio.run(run()) == [1000, 3000]
    runner.check_health()


def test_a_failing_device_fails_the_streams_of_an_event_loop(
    make_runner: MakeRunner, counting: CountingModel
) -> None:
    runner = make_runner()

    async def run() -> None:
        counting.error = RuntimeError("device lost")
        futures = [submitted(runner, runner.acquire(), 1) for _ in range(2)]
        for future in futures:
            with pytest.raises(StageFailed, match="device lost"):
                await future

    asyncio.run(run())
