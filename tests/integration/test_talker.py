"""A real engine on CPU: what a request, a predictor or the engine itself can do to streams."""

import asyncio
import dataclasses
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from logging.handlers import MemoryHandler
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.config import CodePredictorConfig
from serve_app.errors import InvalidRequest, Overloaded, StageFailed, StageUnavailable
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.process_end import EXIT_STATUS
from serve_app.models.talker.engine import VllmTalker
from serve_app.models.talker.outbox import TalkerStream
from serve_app.models.talker.prompt import build_prompt
from serve_app.models.talker.runtime import TalkerPrompt
from serve_app.protocols import require
from serve_app.types import CodecFrames, InputTokens, SpeechRequest
from tests.parity.engines import assert_same_codes, codes_of, collect, request, speak, talker
from tests.waiting import until

WAIT_S = 120.0
TEXT = "A sentence of some length, said by one of the voices."
LONG = request(TEXT, max_new_tokens=60)
# One emoji is four ids of the tokenizer, and a slot has 512 positions.
PARROTS = request("\U0001f99c" * 300, streaming_text=True, max_new_tokens=10)


class Predictor(InProcessFrames):
    """A predictor to which something happens at the calls that `at` names."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # pyright: ignore[reportArgumentType]
        self.calls = 0
        self.at: dict[int, Callable[[torch.Tensor], object]] = {}

    def predict(self, batch: FrameBatch) -> torch.Tensor:
        self.calls += 1
        codes = super().predict(batch)
        happen = self.at.pop(self.calls, None)
        if happen is not None:
            happen(codes)
        return codes


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return tiny_checkpoint("custom_voice", "tiny", eos="unreachable")


@pytest.fixture
def predictor(path) -> Predictor:
    return Predictor.load(open_checkpoint(path), CodePredictorConfig(), "cpu")  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def alone(path) -> np.ndarray:
    """The frames of `LONG`, all alone in an engine."""
    with talker(path) as engine:
        return speak(engine, [LONG])[0]


async def beside(engine: VllmTalker, disturb: Callable[[], object]) -> np.ndarray:
    """The frames of `LONG`; what `disturb` returns is awaited once three of them are there."""
    items = []
    async with aclosing(engine.frames(LONG)) as stream:
        async for item in stream:
            items.append(item)
            if len(items) == 3:
                disturbance = asyncio.ensure_future(disturb())  # pyright: ignore[reportArgumentType]
        await disturbance
    return codes_of(items)


async def all_of(engine: VllmTalker, asked: SpeechRequest, **options: object) -> np.ndarray:
    return codes_of(await collect(engine.frames(asked, **options)))


def test_an_engine_leaves_the_logs_of_its_process_open(path, tmp_path: Path) -> None:
    file = logging.FileHandler(tmp_path / "replica.log")
    kept = MemoryHandler(1000, target=file)  # as Serve's in its throughput mode
    try:
        with talker(path):
            assert kept.target is file
    finally:
        kept.close()
        file.close()


def test_text_beyond_the_last_frame_harms_nobody(path, alone) -> None:
    with talker(path) as engine:

        async def parrots() -> None:
            assert len(await all_of(engine, PARROTS)) == 10

        assert_same_codes(asyncio.run(beside(engine, parrots)), alone)
        require(engine.health())


def test_what_the_engine_cannot_compute_is_refused_before_it_gets_there(path, alone) -> None:
    with talker(path) as engine:
        prompt = build_prompt(PARROTS, engine.spec, engine.tokenizer, 512)
        too_long = dataclasses.replace(prompt, trailing_text=np.zeros(600, np.int32))

        async def refused() -> None:
            with pytest.raises(InvalidRequest):
                await anext(engine.generate(too_long))
            with pytest.raises(InvalidRequest, match="done"):
                await all_of(engine, LONG, done=np.full((3, 16), 5000))

        assert_same_codes(asyncio.run(beside(engine, refused)), alone)


def test_a_request_that_fails_inside_a_step_fails_alone(path, alone) -> None:
    """No request is known that passes the checks and does; this one is taken past them."""
    with talker(path) as engine:
        prompt = build_prompt(PARROTS, engine.spec, engine.tokenizer, 512)
        too_long = dataclasses.replace(prompt, trailing_text=np.zeros(600, np.int32))

        async def fails() -> None:
            stream = TalkerStream(asyncio.get_running_loop(), asyncio.Queue())
            work = TalkerPrompt(too_long, np.zeros((0, 16), np.int64))
            engine.inspect.submit("too long", stream, work)
            item = await asyncio.wait_for(stream.queue.get(), WAIT_S)
            engine.inspect.withdraw("too long", finished=False)
            assert isinstance(item, StageFailed)
            assert "too long" in str(item)

        assert_same_codes(asyncio.run(beside(engine, fails)), alone)
        assert_same_codes(speak(engine, [LONG])[0], alone, "afterwards")


def test_codes_that_a_lost_predictor_never_made_reach_nobody(path, predictor, alone) -> None:
    predictor.at[8] = lambda codes: codes.fill_(-1)

    async def run(engine: VllmTalker) -> tuple[np.ndarray, np.ndarray]:
        items = []

        async def listen() -> None:
            async with aclosing(engine.frames(LONG)) as stream:
                async for item in stream:
                    items.append(item)

        with pytest.raises(StageUnavailable, match="predictor was lost"):
            await listen()
        made = np.concatenate([item.codes for item in items])
        return made, await all_of(engine, LONG, done=made)

    with talker(path, predictor=predictor) as engine:
        made, rest = asyncio.run(run(engine))
    assert len(made) == 7
    assert_same_codes(np.concatenate([made, rest]), alone)


def test_a_stream_that_fails_at_once_makes_no_place_look_free_soon(path, predictor) -> None:
    predictor.at[1] = lambda codes: codes.fill_(-1)
    with talker(path, predictor=predictor) as engine:
        with pytest.raises(StageUnavailable, match="predictor was lost"):
            speak(engine, [LONG])
        with pytest.raises(Overloaded):
            engine.admission.check(inside=1, places=1)


def test_who_would_rather_not_wait_is_refused_where_others_wait(path, alone) -> None:
    hurried = dataclasses.replace(LONG, longest_wait_s=0.0)

    async def run(engine: VllmTalker) -> None:
        async def ask() -> None:
            with pytest.raises(Overloaded):
                await all_of(engine, hurried)
            assert_same_codes(await all_of(engine, LONG), alone)

        assert_same_codes(await beside(engine, ask), alone)
        assert_same_codes(await all_of(engine, hurried), alone)

    with talker(path, max_num_seqs=1, max_wait_s=60.0) as engine:
        asyncio.run(run(engine))


def test_an_engine_that_fails_says_so_once_and_serves_nobody(path, predictor) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("the device is lost")

    predictor.at[5] = fail
    deaths: list[str] = []

    async def run(engine: VllmTalker) -> None:
        with pytest.raises(StageFailed, match="the device is lost"):
            await all_of(engine, LONG)
        with pytest.raises(StageUnavailable, match="the device is lost"):
            require(engine.health())
        with pytest.raises(StageUnavailable, match="the device is lost"):
            await asyncio.wait_for(all_of(engine, LONG), WAIT_S)

    with talker(path, predictor=predictor, on_death=deaths.append) as engine:
        asyncio.run(run(engine))
    assert len(deaths) == 1
    assert "the device is lost" in deaths[0]


BROKEN = """
import asyncio, sys
from pathlib import Path
from serve_app.config import CodePredictorConfig, TalkerConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.talker.engine import VllmTalker
from tests.parity.engines import collect, request

class Broken(InProcessFrames):
    def predict(self, batch):
        raise RuntimeError("the device is lost")

checkpoint = open_checkpoint(Path(sys.argv[1]))
predictor = Broken.load(checkpoint, CodePredictorConfig(), "cpu")
engine = VllmTalker(checkpoint, TalkerConfig(max_model_len=256), "cpu", predictor)
print("serving", flush=True)
asyncio.run(collect(engine.frames(request("Hello."))))
"""


def test_an_engine_that_fails_ends_its_process(path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, str(path)], capture_output=True, text=True, timeout=300
    )
    assert "serving" in done.stdout
    assert done.returncode == EXIT_STATUS
    assert "the talker engine died: RuntimeError('the device is lost')" in done.stderr


def test_a_first_step_that_hangs_is_not_healthy_unless_a_predictor_is_looked_for(
    path, predictor
) -> None:
    looking, hanging = threading.Event(), threading.Event()

    def look_and_hang(_: object) -> None:
        predictor.reached_s = float("inf")
        assert looking.wait(WAIT_S)
        predictor.reached_s = time.monotonic()
        assert hanging.wait(WAIT_S)

    predictor.at[1] = look_and_hang

    async def run(engine: VllmTalker) -> None:
        await asyncio.sleep(1.0)  # longer than a step may take: idle is healthy
        require(engine.health())
        task = asyncio.ensure_future(all_of(engine, LONG))
        await until(lambda: predictor.reached_s == float("inf"))
        await asyncio.sleep(1.0)
        require(engine.health())
        looking.set()
        await until(lambda: not is_healthy(engine))
        with pytest.raises(StageUnavailable, match="no step"):
            await all_of(engine, LONG)
        hanging.set()
        await task
        require(engine.health())

    deaths: list[str] = []
    with talker(path, predictor=predictor, stall_s=0.5, on_death=deaths.append) as engine:
        asyncio.run(run(engine))
    assert "made no step" in deaths[0]


def is_healthy(engine: VllmTalker) -> bool:
    try:
        require(engine.health())
    except StageUnavailable:
        return False
    return True


def test_others_are_served_while_a_long_text_is_tokenized(path) -> None:
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.005)

    async def run(engine: VllmTalker) -> None:
        ticker = asyncio.create_task(tick())
        began_s = time.monotonic()
        with pytest.raises(InvalidRequest, match="too long"):
            await all_of(engine, request("Many words. " * 40_000))
        ended_s = time.monotonic()
        ticker.cancel()
        quarter_s = (ended_s - began_s) / 4
        assert any(began_s + quarter_s < moment < ended_s - quarter_s for moment in ticks)

    with talker(path) as engine:
        asyncio.run(run(engine))


def test_what_steps_take_and_prompts_have_is_counted(path) -> None:
    with talker(path) as engine:
        before, began_s = engine.stats(), time.perf_counter()
        speak(engine, [LONG, LONG])
        elapsed_s, after = time.perf_counter() - began_s, engine.stats()
        prompt = build_prompt(LONG, engine.spec, engine.tokenizer, 512)
        added = {name: after[name] - before[name] for name in ("prompt_tokens", "step_s", "steps")}
        assert added["prompt_tokens"] == 2 * len(prompt.rows)
        # Together they are what the engine was busy for, which was nearly all of the time.
        assert 0.5 * elapsed_s < added["step_s"] <= elapsed_s
        assert added["steps"] >= 60


def test_a_stream_begins_with_what_was_read_for_it_unless_it_goes_on(path) -> None:
    with talker(path) as engine:
        read = InputTokens(text=len(engine.tokenizer.encode(LONG.text)))
        items = asyncio.run(collect(engine.frames(LONG)))
        assert [item.tokens for item in items] == [read, *[None] * (len(items) - 1)]
        rest = asyncio.run(collect(engine.frames(LONG, done=items[0].codes)))
        assert {item.tokens for item in rest} == {None}


def test_speech_that_is_cut_for_want_of_room_leaves_a_trace(path, caplog) -> None:
    with talker(path, max_model_len=64) as engine:
        (asked_for,) = speak(engine, [request("Hello there.", max_new_tokens=5)])
        assert (len(asked_for), engine.stats()["cut"]) == (5, 0)
        (cut,) = speak(engine, [request("Hello there.", max_new_tokens=4000)])
        assert engine.stats()["cut"] == 1
    assert f"cut after {len(cut)} frames" in caplog.text


def test_a_stream_says_how_long_it_waited_for_its_prefill(path) -> None:
    with talker(path, max_num_seqs=1, max_wait_s=60.0) as engine:
        speak(engine, [LONG])  # what a first step compiles is no wait

        async def both() -> tuple[list[CodecFrames], list[CodecFrames]]:
            first = engine.frames(LONG)
            before = [await anext(first)]
            waiting = asyncio.create_task(collect(engine.frames(LONG)))
            before += await collect(first)
            return before, await waiting

        before, after = asyncio.run(both())
        for items in (before, after):
            assert items[0].queued_s <= items[0].elapsed_s
            assert {item.queued_s for item in items[1:]} == {None}
        # All that the one before it had left, of which its own prefill and frame are a small part.
        assert before[0].queued_s < after[0].queued_s / 4
        assert after[0].queued_s > 0.8 * after[0].elapsed_s


def test_a_burst_is_prefilled_in_the_order_in_which_listeners_wait(path, predictor, alone) -> None:
    """Resumed, new, what follows on something, what nobody hears; here they come the wrong way."""
    short = [request(f"Number {n} of a burst.", max_new_tokens=8) for n in range(26)]
    kinds = [
        *("background" for _ in range(4)),
        *("follows" for _ in range(6)),
        *("new" for _ in range(16)),
    ]
    fields = {"background": {"background": True}, "follows": {"ahead_s": 5.0}, "new": {}}
    order: list[str] = []

    async def first_of(kind: str, stream: AsyncGenerator[CodecFrames, None]) -> np.ndarray:
        items = []
        async for item in stream:
            if not items:
                order.append(kind)
            items.append(item)
        return codes_of(items)

    async def burst(engine: VllmTalker) -> list[np.ndarray]:
        held = threading.Event()
        predictor.at[5] = lambda _: held.wait(WAIT_S)
        async with aclosing(engine.frames(LONG)) as beside:
            await anext(beside)
            await until(lambda: predictor.calls == 5)
            speaking = []
            for kind, one in zip(kinds, short, strict=True):
                stream = engine.frames(dataclasses.replace(one, **fields[kind]))
                speaking.append(asyncio.create_task(first_of(kind, stream)))
                count = len(speaking) + 1
                await until(lambda count=count: engine.stats()["streams"] == count)
            resumed = engine.frames(LONG, done=alone[:20])
            speaking.append(asyncio.create_task(first_of("resumed", resumed)))
            await until(lambda: engine.stats()["streams"] == len(speaking) + 1)
            held.set()
            return await asyncio.gather(*speaking)

    # Of so many positions that two or three begin in one step.
    with talker(path, predictor, max_num_batched_tokens=96) as engine:
        *spoken, rest = asyncio.run(burst(engine))
        expected = [speak(engine, [one])[0] for one in short]
    assert order == ["resumed", *["new"] * 16, *["follows"] * 6, *["background"] * 4]
    for ours, theirs in zip(spoken, expected, strict=True):
        assert_same_codes(ours, theirs)
    assert_same_codes(rest, alone[20:])
