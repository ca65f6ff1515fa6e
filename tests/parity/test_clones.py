"""Many cloned voices in one engine: each stream is what it would be alone, and stays so."""

import dataclasses

import numpy as np
import pytest

from serve_app.types import ClonedVoice, SamplingOverrides, SpeechRequest
from tests.parity.engines import assert_same_codes, first_difference, request, speak, talker

NUM_VOICES = 16
SAMPLED = SamplingOverrides(temperature=0.9, top_k=50, top_p=0.95, repetition_penalty=1.05)
TEXTS = ["Hello there.", "A longer sentence, which takes a while to say.", "今天天气很好。"]
# float32, 3 layers, 2 KV heads of 32, blocks of 32 positions: what the tiny checkpoint has.
BLOCK_BYTES = 32 * 2 * 3 * 2 * 32 * 4


def voices(hidden_size: int) -> list[ClonedVoice]:
    """Every second one in context, with recordings of different lengths."""
    rng = np.random.default_rng(5)
    made = []
    for index in range(NUM_VOICES):
        vector = rng.standard_normal(hidden_size, dtype=np.float32)
        codes = rng.integers(0, 2048, (5 + 2 * index, 16))
        in_context = (codes, "A recording.") if index % 2 else (None, None)
        made.append(ClonedVoice(vector, *in_context, name=f"voice {index}"))
    return made


def mixed(count: int) -> list[SpeechRequest]:
    """Greedy and sampled, both text modes."""
    known = voices(64)
    return [
        request(
            TEXTS[i % len(TEXTS)],
            voice=known[i % NUM_VOICES],
            language="auto",
            streaming_text=i % 3 == 0,
            seed=1000 + i,
            max_new_tokens=10 + i % 5,
            **({} if i % 4 < 2 else {"talker": SAMPLED, "subtalker": SAMPLED}),
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return tiny_checkpoint("base", "tiny", eos="unreachable")


@pytest.fixture(scope="module")
def engine(path):
    with talker(path, max_num_seqs=64) as engine:
        yield engine


@pytest.fixture(scope="module")
def singles(engine):
    """The streams of 32 requests with 16 voices, each alone in the engine."""
    requests = mixed(32)
    return requests, [speak(engine, [one])[0] for one in requests]


def test_no_voice_reaches_the_stream_of_another(engine, singles) -> None:
    requests, alone = singles
    together = speak(engine, [*requests, *requests[::-1]])
    for index, codes in enumerate(together):
        assert_same_codes(codes, [*alone, *alone[::-1]][index], f"request {index} of 64")


def test_resumed_streams_of_clones_equal_uninterrupted_ones(engine, singles) -> None:
    requests, alone = singles
    cuts = [1 + (7 * i) % (len(codes) - 1) for i, codes in enumerate(alone)]
    done = [codes[:cut] for codes, cut in zip(alone, cuts, strict=True)]
    rest = speak(engine, requests, done=done)
    for index, (codes, cut) in enumerate(zip(rest, cuts, strict=True)):
        assert_same_codes(codes, alone[index][cut:], f"request {index} resumed at {cut}")


def test_a_voice_and_its_recording_decide_what_is_said(engine) -> None:
    plain, in_context = voices(64)[:2]
    vector_only = dataclasses.replace(in_context, reference_codes=None, reference_text=None)
    asked = [
        request(TEXTS[0], voice=voice, max_new_tokens=8)
        for voice in (plain, vector_only, in_context)
    ]
    first, second, third = speak(engine, asked)
    assert not np.array_equal(first, second)
    assert not np.array_equal(second, third)


def test_a_row_that_two_slots_share_would_be_noticed(engine, singles) -> None:
    requests, alone = singles
    embedding = engine.inspect.core.runner.model_state.embedding
    embedding.speaker_row = lambda _: embedding.zero_row + 1
    try:
        together = speak(engine, requests[:8])
    finally:
        del embedding.speaker_row
    assert any(first_difference(a, b) != "equal" for a, b in zip(together, alone[:8], strict=True))


def test_chunked_prefill_and_preemption_keep_every_voice(path, engine) -> None:
    # So many frames that streams need memory that others have.
    requests = [dataclasses.replace(one, max_new_tokens=48) for one in mixed(24)]
    expected = speak(engine, requests)
    small = {"max_model_len": 256, "kv_cache_bytes": 12 * BLOCK_BYTES, "max_num_batched_tokens": 40}
    with talker(path, **small) as squeezed:
        together = speak(squeezed, requests)
        assert squeezed.stats()["preemptions"] > 0, "the KV pool was large enough"
    for index, codes in enumerate(together):
        assert_same_codes(codes, expected[index], f"request {index}")
