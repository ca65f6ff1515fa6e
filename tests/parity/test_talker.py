"""What must not change the codes: the batch, the order of arrival, chunked prefill, preemption,
resumption.

Each test compares streams of one engine with streams of the same requests alone.
"""

import asyncio
import dataclasses
import gc
import random
from contextlib import aclosing, suppress

import numpy as np
import pytest

from serve_app.errors import InvalidRequest, Overloaded
from serve_app.models.talker.prompt import PromptBuilder, build_prompt
from serve_app.types import SamplingOverrides
from tests.parity.engines import assert_same_codes, codes_of, collect, request, speak, talker

SAMPLED = SamplingOverrides(temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.05)
TEXTS = [
    "Hello there.",
    "A much longer sentence, which takes a while to read and to say aloud.",
    "今天天气很好。",
    "Bonjour!",
    "Numbers: 1 2 3 4 5 6 7.",
]


def mixed_requests(count: int, frames: int = 24):
    """Greedy and sampled, both text modes, several voices, lengths and seeds."""
    voices = ["ryan", "vivian", "dylan", "serena"]
    return [
        request(
            TEXTS[i % len(TEXTS)],
            voice=voices[i % len(voices)],
            language="auto",
            streaming_text=i % 2 == 0,
            seed=1000 + i,
            max_new_tokens=frames - 3 * (i % 5),
            **({} if i % 3 == 0 else {"talker": SAMPLED, "subtalker": SAMPLED}),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return tiny_checkpoint("custom_voice", "tiny", eos="unreachable")


@pytest.fixture(scope="module")
def singles(path):
    """The streams of 32 mixed requests, each alone in the engine."""
    requests = mixed_requests(32)
    with talker(path) as engine:
        return requests, [speak(engine, [r])[0] for r in requests]


def test_batches_in_any_order_of_arrival_equal_singles(path, singles) -> None:
    requests, alone = singles
    with talker(path) as engine:
        for seed in (1, 2):
            rng = random.Random(seed)
            order = rng.sample(range(32), 32)
            together = speak(
                engine, [requests[i] for i in order], delays_s=[rng.random() * 0.5 for _ in order]
            )
            for index, codes in zip(order, together, strict=True):
                assert_same_codes(codes, alone[index], f"request {index}")


def test_chunked_prefill_and_preemption_change_nothing(path, singles) -> None:
    requests, alone = singles
    # 24 KV blocks of 32 positions hold a third of what 32 requests need, and 40 positions a step
    # split prompts.
    # float32, 3 layers, 2 KV heads of 32: what the tiny checkpoint has.
    per_block = 32 * 2 * 3 * 2 * 32 * 4
    with talker(path, max_num_batched_tokens=40, kv_cache_bytes=24 * per_block) as engine:
        together = speak(engine, requests)
        preemptions = engine.stats()["preemptions"]
    assert preemptions > 0, "the KV pool was large enough: nothing was preempted"
    for index, codes in enumerate(together):
        assert_same_codes(codes, alone[index], f"request {index}")


def test_resumed_streams_equal_uninterrupted_ones(path, singles) -> None:
    requests, alone = singles
    cuts = [1 + (7 * i) % (len(codes) - 1) for i, codes in enumerate(alone)]
    done = [codes[:cut] for codes, cut in zip(alone, cuts, strict=True)]
    with talker(path) as engine:
        rest = speak(engine, requests, done=done)
    for index, (codes, cut) in enumerate(zip(rest, cuts, strict=True)):
        assert_same_codes(codes, alone[index][cut:], f"request {index} resumed at {cut}")


def test_a_text_that_grows_in_time_gives_the_codes_of_the_whole(path) -> None:
    """The layout `streaming_text` (docs/decisions/0012-text-in-pieces.md): one token a frame."""
    words = TEXTS[1].split(" ")

    def prompt(engine, num_words, sampling):
        asked = request(" ".join(words[:num_words]), streaming_text=True, **sampling)
        asked = dataclasses.replace(asked, max_new_tokens=24)
        return asked, build_prompt(asked, engine.spec, engine.tokenizer, 512)

    async def grown(engine, sampling):
        done = np.zeros((0, engine.spec.talker.num_code_groups), np.int64)
        for num_words in (3, 6, 10):
            # Without the token that ends the text; the first one is part of the prompt's rows.
            _, part = prompt(engine, num_words, sampling)
            tokens = part.trailing_text[:-1]
            part = dataclasses.replace(part, trailing_text=tokens, max_new_tokens=len(tokens) + 1)
            done = np.concatenate([done, codes_of(await collect(engine.generate(part, done)))])
            assert len(done) == len(tokens) + 1
        _, rest = prompt(engine, len(words), sampling)
        return np.concatenate([done, codes_of(await collect(engine.generate(rest, done)))])

    with talker(path) as engine:
        for sampling in ({}, {"talker": SAMPLED, "subtalker": SAMPLED}):
            whole, _ = prompt(engine, len(words), sampling)
            (known,) = speak(engine, [whole])
            assert_same_codes(asyncio.run(grown(engine, sampling)), known)


def test_seeds_decide_sampled_codes(path) -> None:
    base = request(TEXTS[0], talker=SAMPLED, subtalker=SAMPLED, max_new_tokens=10)
    with talker(path) as engine:
        a, b, c = speak(engine, [dataclasses.replace(base, seed=s) for s in (5, 5, 6)])
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_closing_a_stream_aborts_its_request(path) -> None:
    async def run(engine) -> None:
        for _ in range(20):
            async with aclosing(engine.frames(request(TEXTS[1], max_new_tokens=400))) as stream:
                async for _ in stream:
                    break
        for _ in range(50):
            if engine.stats()["running"] == engine.stats()["waiting"] == 0:
                break
            await asyncio.sleep(0.01)
        stats = engine.stats()
        assert (stats["running"], stats["waiting"], stats["streams"]) == (0, 0, 0)
        assert stats["kv_cache_usage"] == 0

    with talker(path) as engine:
        asyncio.run(run(engine))


def test_a_full_queue_and_bad_requests_are_refused_before_the_engine(path) -> None:
    async def run(engine) -> None:
        async with aclosing(engine.frames(request(TEXTS[1], max_new_tokens=400))) as first:
            await anext(first)
            async with aclosing(engine.frames(request(TEXTS[1], max_new_tokens=400))) as second:
                waiting = asyncio.ensure_future(anext(second))
                await asyncio.sleep(0.05)
                with pytest.raises(Overloaded) as refused:
                    await anext(engine.frames(request(TEXTS[0])))
                assert refused.value.stage == "talker"
                waiting.cancel()
                with suppress(asyncio.CancelledError):
                    await waiting
        with pytest.raises(InvalidRequest, match="voice"):
            await anext(engine.frames(request(TEXTS[0], voice="nobody")))
        # Long texts are read on threads, where others that came in the same moment are as well.
        long = request("long " * 120, max_new_tokens=2)
        together = [collect(engine.frames(long)) for _ in range(4)]
        outcomes = await asyncio.gather(*together, return_exceptions=True)
        assert [isinstance(outcome, Overloaded) for outcome in outcomes].count(True) == 2

    with talker(path, max_num_seqs=1, max_queued=1, max_wait_s=10.0) as engine:
        asyncio.run(run(engine))


def test_a_prompt_that_was_laid_out_elsewhere_is_what_is_spoken(path) -> None:
    with talker(path) as engine:
        builder = PromptBuilder(engine.spec, engine.tokenizer, engine.config.max_model_len)

        short = {"max_new_tokens": 8}

        async def both() -> list[np.ndarray]:
            prompt = await builder.build(request(TEXTS[1], **short))
            frames = (
                engine.frames(request(TEXTS[0], **short), prompt=prompt),
                engine.frames(request(TEXTS[1], **short)),
            )
            return [codes_of(await collect(stream)) for stream in frames]

        given, own = asyncio.run(both())
    np.testing.assert_array_equal(given, own)


def test_limits_give_a_finish_reason(path) -> None:
    with talker(path) as engine:
        (codes,) = speak(engine, [request(TEXTS[0], max_new_tokens=7)])
    assert len(codes) == 7


def test_garbage_is_collected_again_once_the_engine_runs(path) -> None:
    with talker(path):
        assert gc.isenabled()
