"""The stage: items in, chunks out, and what a stream leaves behind."""

import asyncio
import threading
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from serve_app.config import SpeechDecoderConfig
from serve_app.errors import Overloaded, StageFailed
from serve_app.models.checkpoint.files import Checkpoint
from serve_app.models.speech_decoder.network.model import context_frames, vocoder_frames
from serve_app.models.speech_decoder.stage import StreamingSpeechDecoder
from serve_app.protocols import require
from serve_app.types import CodecFrames, PcmChunk
from tests.unit.speech_decoder.conftest import MakeRunner
from tests.unit.speech_decoder.counting import (
    SAMPLES_PER_FRAME,
    CountingModel,
    codes_of,
    growing,
    items,
)


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


def test_the_first_chunk_says_what_its_frames_waited_and_took(
    stage: StreamingSpeechDecoder,
) -> None:
    first = CodecFrames(codes_of(0), 0, queued_s=0.25, elapsed_s=0.5)
    told, later = collect(stage, first, CodecFrames(codes_of(0, 3), 1, "stop"))
    assert told.timings[:2] == (("talker_queue", 0.25), ("talker", 0.5))
    assert [name for name, _ in told.timings[2:]] == ["decode"]
    assert later.timings == ()


def test_done_frames_come_before_the_stream(stage: StreamingSpeechDecoder) -> None:
    (chunk,) = collect(stage, CodecFrames(codes_of(0), 7, "length"), done=codes_of(0, 7))
    assert chunk.first_sample == 7 * SAMPLES_PER_FRAME
    assert chunk.samples[0] == 7
    assert chunk.finish_reason == "length"


def test_of_what_was_heard_only_the_last_frames_are_decoded_again(
    stage: StreamingSpeechDecoder, counting: CountingModel
) -> None:
    """What a resumed stream waits for: the vocoder is nearly all of the work."""
    vocoder = vocoder_frames(counting.spec)
    (chunk,) = collect(
        stage,
        CodecFrames(codes_of(3), 100, "length"),
        done=np.concatenate([codes_of(1, 100 - vocoder), codes_of(2, vocoder)]),
    )
    # What was before these matters to no sample.
    kept = min(100, context_frames(counting.spec))
    assert chunk.samples[0] == 3000 + kept
    assert sum(frames for _, frames in counting.primed) == kept - vocoder
    assert {code for code, _ in counting.primed} == {1}
    *again, new = counting.steps
    assert sum(step[-1] for step in again) == vocoder
    assert {step[0] for step in again} == {2}
    assert new == (3, 1)


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


def test_who_waits_for_its_talker_has_no_slot(
    stage: StreamingSpeechDecoder, counting: CountingModel
) -> None:
    """Three streams where there are two slots; nothing is decoded before a talker has begun."""

    async def run() -> None:
        admitted = asyncio.Event()

        async def waiting() -> AsyncGenerator[CodecFrames, None]:
            await admitted.wait()
            yield CodecFrames(codes_of(3), 3, "stop")

        streams = [stage.pcm(waiting(), codes_of(0, 3)) for _ in range(3)]
        tasks = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await asyncio.sleep(0.01)
        assert stage.stats()["streams"] == 0
        assert counting.steps == []
        (running,) = [
            chunk async for chunk in stage.pcm(items(CodecFrames(codes_of(9), 9, "stop")))
        ]
        assert running.samples[0] == 9000
        admitted.set()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in done] == [PcmChunk, PcmChunk, Overloaded]
        for stream in streams:
            await stream.aclose()
        assert stage.stats()["streams"] == 0

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
        stats = decoder.stats()
        assert stats["step_s"] > 0
        assert sum(n for name, n in stats.items() if name.startswith("steps<")) == 1
        stats = {name: n for name, n in stats.items() if not name.startswith(("steps<", "step_s"))}
        assert stats | {"waiting": 0} == {
            "streams": 0, "max_streams": 1, "waiting": 0, "steps": 1, "frames": 3,
                "late_kernels": 0,
        }  # fmt: skip
        require(decoder.health())
    finally:
        decoder.close()


def test_a_slot_of_the_callers_is_left_to_it(stage: StreamingSpeechDecoder) -> None:
    """As in `fused`, where the talker has decoded the first frame into it."""
    slot = stage.runner.acquire()
    samples = np.zeros(SAMPLES_PER_FRAME, np.int16)
    first = CodecFrames(codes_of(1), 0, samples=samples)

    async def run() -> list[PcmChunk]:
        return [chunk async for chunk in stage.pcm(items(first), None, slot)]

    (chunk,) = asyncio.run(run())
    assert chunk.samples is samples
    assert stage.stats()["streams"] == 1
    stage.runner.release(slot)
    assert stage.stats()["streams"] == 0
