"""The speech decoder against the reference, and against itself in other chunks and batches."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from serve_app.config import SpeechDecoderConfig
from serve_app.models.checkpoint.files import Checkpoint, open_checkpoint
from serve_app.models.device import resolve_device
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel, context_frames
from serve_app.models.speech_decoder.network.state import DecoderState
from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder
from serve_app.types import CodecFrames
from tests.conftest import TinyCheckpoint
from tests.parity.reference import Reference

# Kernels of other shapes sum in another order: 7e-6 was seen in float32, 1e-14 in float64.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}
# PCM is rounded to int16, so a difference of float rounding can move a sample by one step.
ONE_STEP = 1
SAMPLES_PER_FRAME = 1920


@pytest.fixture(scope="module")
def path(tiny_checkpoint: TinyCheckpoint) -> Path:
    return tiny_checkpoint(variant="custom_voice", size="tiny")


@pytest.fixture(scope="module")
def checkpoint(path: Path) -> Checkpoint:
    return open_checkpoint(path)


@pytest.fixture(scope="module")
def reference(path: Path) -> Reference:
    return Reference(path)


def model_of(checkpoint: Checkpoint, dtype: torch.dtype) -> SpeechDecoderModel:
    tensors = checkpoint.speech_tokenizer_tensors("decoder.")
    return SpeechDecoderModel(checkpoint.spec.speech_decoder).load(tensors, dtype)


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def model(request: pytest.FixtureRequest, checkpoint: Checkpoint) -> SpeechDecoderModel:
    return model_of(checkpoint, request.param)


def random_codes(num_frames: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2048, (num_frames, 16))


def decode(
    model: SpeechDecoderModel, codes: np.ndarray, splits: Sequence[int] | None = None
) -> Tensor:
    """Decode [T, Q] in chunks of the given lengths (the last one repeats); default: one."""
    state, parts, begin, index = model.new_state(1), [], 0, 0
    splits = splits or [len(codes)]
    while begin < len(codes):
        chunk = codes[begin : begin + splits[min(index, len(splits) - 1)]]
        parts.append(model.decode(torch.from_numpy(chunk.T.copy())[None], state)[0])
        begin, index = begin + len(chunk), index + 1
    return torch.cat(parts)


def assert_same(got: Tensor, expected: Tensor, tolerance: float) -> None:
    """Compare samples; name the first frame that differs."""
    assert got.shape == expected.shape
    wrong = ((got - expected).abs() > tolerance).nonzero()
    if len(wrong):
        worst = (got - expected).abs().max()
        pytest.fail(
            f"differs from frame {int(wrong[0]) // SAMPLES_PER_FRAME} on, at most by {worst}"
        )


@pytest.mark.parametrize(
    "splits",
    [
        [1],
        [7],
        [25],
        [1, 2, 4, 8, 12],
        [3, 50, 1, 1, 9],
        *([*np.random.default_rng(s).integers(1, 30, 60)] for s in (1, 2)),
    ],
    ids=["ones", "sevens", "twentyfives", "growing", "mixed", "random1", "random2"],
)
def test_any_chunking_equals_offline(model: SpeechDecoderModel, splits: list[int]) -> None:
    codes = random_codes(100)
    assert_same(decode(model, codes, splits), decode(model, codes), TOLERANCE[model.dtype])


def test_the_signal_is_one_a_difference_would_show_in(checkpoint: Checkpoint) -> None:
    samples = decode(model_of(checkpoint, torch.float32), random_codes(40))
    assert 0.1 < samples.square().mean().sqrt() < 0.8
    assert (samples.abs() == 1).double().mean() < 0.2


def test_offline_equals_the_reference_up_to_300_frames(
    reference: Reference, checkpoint: Checkpoint
) -> None:
    codes = random_codes(300)
    ours = decode(model_of(checkpoint, torch.float32), codes, [12])
    assert_same(ours, torch.from_numpy(reference.decode(codes)), 2e-5)


def test_rows_at_different_positions_batch_freely(model: SpeechDecoderModel) -> None:
    streams = [random_codes(60, seed) for seed in range(4)]
    ahead = [0, 1, 13, 40]
    arena = model.new_state(7)
    slots = [5, 0, 3, 2]
    for stream, slot, frames in zip(streams, slots, ahead, strict=True):
        if frames:
            rows = arena.gather(torch.tensor([slot]))
            model.decode(torch.from_numpy(stream[:frames].T.copy())[None], rows)
            arena.scatter(torch.tensor([slot]), rows)
    got: list[list[Tensor]] = [[] for _ in streams]
    for step in range(4):
        rows = arena.gather(torch.tensor(slots))
        fresh = [s[a + 5 * step : a + 5 * step + 5].T for s, a in zip(streams, ahead, strict=True)]
        samples = model.decode(torch.from_numpy(np.stack(fresh)), rows)
        arena.scatter(torch.tensor(slots), rows)
        for parts, row in zip(got, samples, strict=True):
            parts.append(row)
    for parts, stream, frames in zip(got, streams, ahead, strict=True):
        expected = decode(model, stream[: frames + 20])[frames * SAMPLES_PER_FRAME :]
        assert_same(torch.cat(parts), expected, TOLERANCE[model.dtype])


@pytest.mark.parametrize("splits", [[90], [1, 2, 4, 8]], ids=["offline", "streamed"])
def test_no_sample_depends_on_a_later_frame(checkpoint: Checkpoint, splits: list[int]) -> None:
    model = model_of(checkpoint, torch.float64)
    codes = random_codes(90)
    changed = codes.copy()
    changed[50, 7] = (changed[50, 7] + 1) % 2048
    before, after = decode(model, codes, splits), decode(model, changed, splits)
    cut = 50 * SAMPLES_PER_FRAME
    assert torch.equal(before[:cut], after[:cut])
    assert not torch.equal(
        before[cut : cut + SAMPLES_PER_FRAME], after[cut : cut + SAMPLES_PER_FRAME]
    )


def test_context_frames_reach_exactly_as_far_as_a_change_is_heard(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint, torch.float64)
    reach = context_frames(model.spec)
    codes = random_codes(reach + 3)
    inside, outside = codes.copy(), codes.copy()
    inside[2] = (inside[2] + 1) % 2048
    outside[1] = (outside[1] + 1) % 2048
    last = slice((reach + 2) * SAMPLES_PER_FRAME, None)
    expected = decode(model, codes)[last]
    assert (decode(model, inside)[last] - expected).abs().max() > 0
    assert (decode(model, outside)[last] - expected).abs().max() < TOLERANCE[torch.float64]


def test_context_of_the_release_is_580_frames(checkpoint: Checkpoint) -> None:
    spec = checkpoint.spec.speech_decoder
    released = replace(spec, sliding_window=72, transformer=replace(spec.transformer, num_layers=8))
    assert context_frames(released) == 580


def test_a_reset_slot_starts_over(model: SpeechDecoderModel) -> None:
    arena = model.new_state(3)
    slot = torch.tensor([1])
    codes = torch.from_numpy(random_codes(9).T.copy())[None]

    def step(state: DecoderState) -> Tensor:
        rows = state.gather(slot)
        samples = model.decode(codes, rows)
        state.scatter(slot, rows)
        return samples

    first = step(arena)
    assert not torch.equal(step(arena), first)
    arena.reset(1)
    assert torch.equal(step(arena), first)
    assert int(arena.position[1]) == 9
    assert not arena.values[0].any()


# --- the stage


async def items(
    codes: np.ndarray, splits: Sequence[int], first_frame: int = 0
) -> AsyncGenerator[CodecFrames, None]:
    begin, index = 0, 0
    while begin < len(codes):
        chunk = codes[begin : begin + splits[min(index, len(splits) - 1)]]
        yield CodecFrames(chunk, first_frame + begin)
        begin, index = begin + len(chunk), index + 1


def speak(
    decoder: StreamingSpeechDecoder,
    codes: np.ndarray,
    splits: Sequence[int],
    done: np.ndarray | None = None,
) -> np.ndarray:
    async def run() -> np.ndarray:
        first = 0 if done is None else len(done)
        chunks = [chunk async for chunk in decoder.pcm(items(codes, splits, first), done)]
        assert chunks[0].first_sample == first * SAMPLES_PER_FRAME
        return np.concatenate([chunk.samples for chunk in chunks])

    return asyncio.run(run())


def stage(checkpoint: Checkpoint, **settings: object) -> StreamingSpeechDecoder:
    config = SpeechDecoderConfig.model_validate(
        {"max_streams": 4, "batch_sizes": (1, 4), **settings}
    )
    return StreamingSpeechDecoder.load(checkpoint, config, "cpu")


def as_pcm(samples: np.ndarray) -> np.ndarray:
    return np.round(np.clip(samples, -1, 1).astype(np.float64) * 32767).astype(np.int16)


def assert_same_pcm(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    wrong = np.flatnonzero(np.abs(got.astype(int) - expected.astype(int)) > ONE_STEP)
    assert not len(wrong), f"differs from frame {wrong[0] // SAMPLES_PER_FRAME} on"


@pytest.mark.parametrize("num_done", [1, 10, 11, 30, 200, 600])
def test_a_resumed_stream_goes_on_as_if_it_had_never_stopped(
    checkpoint: Checkpoint, num_done: int
) -> None:
    codes = random_codes(num_done + 20)
    decoder = stage(checkpoint)
    try:
        whole = speak(decoder, codes, [1, 2, 4])
        rest = speak(decoder, codes[num_done:], [3], done=codes[:num_done])
    finally:
        decoder.close()
    assert_same_pcm(rest, whole[num_done * SAMPLES_PER_FRAME :])


@pytest.fixture(scope="module")
def long_codes() -> np.ndarray:
    return random_codes(640, seed=9)


@pytest.fixture(scope="module")
def long_reference(reference: Reference, long_codes: np.ndarray) -> np.ndarray:
    return as_pcm(reference.decode(long_codes))


def test_the_reference_is_our_network_in_chunks_of_300_frames(
    checkpoint: Checkpoint, long_codes: np.ndarray, long_reference: np.ndarray
) -> None:
    """It decodes 300 frames at a time from a fresh state, fed with the 25 frames before them."""
    model = model_of(checkpoint, torch.float32)
    parts = []
    for start in range(0, len(long_codes), 300):
        context = min(start, 25)
        samples = decode(model, long_codes[start - context : start + 300]).numpy()
        parts.append(samples[context * SAMPLES_PER_FRAME :])
    assert_same_pcm(as_pcm(np.concatenate(parts)), long_reference)


def test_exact_decoding_differs_from_the_reference_only_beyond_300_frames(
    checkpoint: Checkpoint, long_codes: np.ndarray, long_reference: np.ndarray
) -> None:
    decoder = stage(checkpoint)
    try:
        exact = speak(decoder, long_codes, [12])
    finally:
        decoder.close()
    cut = 300 * SAMPLES_PER_FRAME
    assert_same_pcm(exact[:cut], long_reference[:cut])
    assert np.abs(exact[cut:].astype(int) - long_reference[cut:].astype(int)).max() > 1000


def test_auto_means_float32_on_the_cpu() -> None:
    assert resolve_device("cpu", "auto").dtype == torch.float32
