"""Where bfloat16 sums in another order change a greedy choice, the two codes were a tie.

A tie is a gap between two logits of at most TIE times the logits' own spread (their standard
deviation over the vocabulary), measured where the other order was not used. bfloat16 keeps 8 bits,
and a logit is the end of 28 layers of rounding (talker) or 5 (code predictor).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from load_tests.stages.code_predictor import SPECS, forced_logits, random_batch, random_weights
from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.code_predictor.fast import FastCodePredictor
from serve_app.models.code_predictor.model import CodePredictor
from serve_app.models.random_checkpoint.write import write_checkpoint
from serve_app.models.talker.vllm.transformer import OwnTransformer
from serve_app.types import SamplingOverrides
from tests.gpu.apart import apart
from tests.parity.engines import open_talker, request, speak

TIE = 0.1
SIZES = tuple(os.environ.get("TTS_GPU_SIZES", "0.6b").split(","))
STREAMS, CUTS = 16, (1, 6, 11)
PLAIN = SamplingOverrides(temperature=0.0, repetition_penalty=1.0)
SERVED = {
    "max_model_len": 1024,
    "max_num_batched_tokens": 1024,
    "max_num_seqs": STREAMS,
    "block_size": None,
}


def assert_ties(chosen: Tensor, expected: Tensor, what: str) -> None:
    """Compare the greedy choices of two sets of logits [N, V] from the same past."""
    ours, theirs = chosen.argmax(-1), expected.argmax(-1)
    gap = expected.gather(-1, theirs[:, None]) - expected.gather(-1, ours[:, None])
    relative = gap[:, 0] / expected.std(-1)
    differing = ours != theirs
    print(f"{what}: {int(differing.sum())} of {len(ours)} differ, gap {relative.max():.4f}")
    assert relative.max() <= TIE


@pytest.mark.parametrize("rows", [1, 16, 64, 128])
@pytest.mark.parametrize("size", SIZES)
def test_code_predictor_choices_differ_from_float32_at_ties_only(size: str, rows: int) -> None:
    spec = SPECS[size]
    given = (spec, *random_weights(spec, "cuda"), torch.device("cuda"))
    with torch.inference_mode():
        exact = CodePredictor(*given, torch.float32)
        fast = FastCodePredictor(*given, torch.bfloat16)
        batch = random_batch(spec, rows, torch.bfloat16, "cuda", 0.0)
        codes = fast.predict(batch)
        truth = forced_logits(exact, batch, codes).flatten(0, 1)
        got = forced_logits(fast, batch, codes).flatten(0, 1)
        assert_ties(got, truth, f"{size}, {rows} rows against float32")
        one = FrameBatch(*(getattr(batch, f.name)[:1] for f in fields(FrameBatch)))
        alone = forced_logits(fast, one, codes[:1]).flatten(0, 1)
        together = forced_logits(fast, batch, codes)[:1].flatten(0, 1)
        assert_ties(together, alone, f"{size}, one row of {rows} against alone")


@contextmanager
def first_logits(engine) -> Iterator[list[Tensor]]:
    """Collect the talker's logits, in order of seed, of each step that ends a prefill."""
    runner = engine.inspect.core.runner
    sampler, table = runner.sampler, runner.model_state.table
    frames = sampler.sample_frames
    seen: list[tuple[Tensor, Tensor]] = []

    def noted(logits, hidden, slots, position, valid):
        seen.append((table.ints[slots, 0].clone(), logits.float()))
        return frames(logits, hidden, slots, position, valid)

    sampler.sample_frames = noted
    out: list[Tensor] = []
    try:
        yield out
    finally:
        sampler.sample_frames = frames
    order = torch.cat([seeds for seeds, _ in seen])
    logits = torch.cat([rows for _, rows in seen])
    out.extend(logits[(order == seed).nonzero()[0, 0]] for seed in order.unique())


def after_prefill(engine, streams: list[np.ndarray], cut: int, together: bool) -> np.ndarray:
    """Logits float32 [streams, V] of the frame after `cut` known ones."""
    asked = [
        request("Hello there.", seed=i, talker=PLAIN, max_new_tokens=cut + 1)
        for i in range(len(streams))
    ]
    done = [stream[:cut] for stream in streams]
    with first_logits(engine) as logits:
        if together:
            speak(engine, asked, done=done)
        else:
            for index, each in enumerate(asked):
                speak(engine, [each], done=[done[index]])
    return torch.stack(logits)[:, :2048].cpu().numpy()


def ours(folder: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Streams, and the logits after each cut: all streams together, and one by one."""
    asked = [
        request("Hello there.", seed=i, talker=PLAIN, max_new_tokens=max(CUTS) + 1)
        for i in range(STREAMS)
    ]
    engine = open_talker(folder, device="cuda", **SERVED)
    assert engine.inspect.core.runner.model.own_layers
    streams = speak(engine, asked)
    batched = [after_prefill(engine, streams, cut, together=True) for cut in CUTS]
    alone = [after_prefill(engine, streams, cut, together=False) for cut in CUTS]
    return streams, np.concatenate(batched), np.concatenate(alone)


def vllms(folder: Path, streams: list[np.ndarray]) -> np.ndarray:
    """The logits after each cut of vLLM's own layers, one by one and without graphs."""
    OwnTransformer.suits = staticmethod(lambda _: False)
    engine = open_talker(folder, device="cuda", cuda_graphs=False, **SERVED)
    return np.concatenate([after_prefill(engine, streams, cut, together=False) for cut in CUTS])


@pytest.mark.parametrize("size", SIZES)
def test_talker_choices_differ_at_ties_only(size, tmp_path) -> None:
    """Batch against singles, and our attention in graphs against vLLM's own without them."""
    folder = tmp_path / size
    write_checkpoint(folder, size=size, variant="custom_voice", eos="unreachable", device="cuda")
    streams, batched, alone = apart(ours, folder)
    theirs = apart(vllms, folder, streams)
    batched, alone, theirs = map(torch.from_numpy, (batched, alone, theirs))
    assert_ties(batched, alone, f"talker {size}, batch against singles")
    assert_ties(alone, theirs, f"talker {size}, ours against vLLM's, eager")
