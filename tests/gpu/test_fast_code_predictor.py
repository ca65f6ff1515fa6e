"""The fast code predictor on CUDA against the eager one, at full size with random weights."""

from collections.abc import Iterator
from dataclasses import fields

import pytest
import torch
from torch import Tensor

from load_tests.stages.code_predictor import (
    PLANS,
    SPECS,
    capture,
    forced_logits,
    random_batch,
    random_weights,
)
from serve_app.models.code_predictor.channel.contract import FrameBatch
from serve_app.models.code_predictor.fast import FastCodePredictor
from serve_app.models.code_predictor.model import CodePredictor
from serve_app.models.sampling import sample, uniform
from serve_app.models.sampling_kernel import sample_row

BATCHES = [1, 3, 16, 64, 128]
OTHER_PLANS = ["vector", "tiled", "library"]


@pytest.fixture(scope="module", params=["0.6b", "1.7b"])
def predictors(request: pytest.FixtureRequest) -> Iterator[dict[str, CodePredictor]]:
    spec = SPECS[request.param]
    given = (spec, *random_weights(spec, "cuda"), torch.device("cuda"))
    with torch.inference_mode():
        yield {
            "exact": CodePredictor(*given, torch.float32),
            "eager": CodePredictor(*given, torch.bfloat16),
            "fast": FastCodePredictor(*given, torch.bfloat16),
        }
    torch.cuda.empty_cache()


def batch_of(predictors: dict[str, CodePredictor], rows: int, temperature: float) -> FrameBatch:
    return random_batch(predictors["fast"].spec, rows, torch.bfloat16, "cuda", temperature)


@pytest.mark.parametrize("rows", BATCHES)
def test_logits_are_as_close_to_float32_as_eager_ones(
    predictors: dict[str, CodePredictor], rows: int
) -> None:
    batch = batch_of(predictors, rows, 0.9)
    codes = predictors["eager"].predict(batch)
    truth, eager, fast = (
        forced_logits(predictors[name], batch, codes) for name in ("exact", "eager", "fast")
    )
    assert torch.isfinite(fast).all()
    assert (fast - truth).norm() <= 1.1 * (eager - truth).norm()
    assert (fast - truth).abs().max() <= 1.5 * (eager - truth).abs().max()


@pytest.mark.parametrize("name", OTHER_PLANS)
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_every_path_is_as_close(
    predictors: dict[str, CodePredictor], rows: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictors["fast"], "plans", ((1 << 30, PLANS[name]),))
    test_logits_are_as_close_to_float32_as_eager_ones(predictors, rows)
    test_a_graph_equals_a_call(predictors, rows)


@pytest.mark.parametrize("rows", BATCHES)
def test_a_graph_equals_a_call(predictors: dict[str, CodePredictor], rows: int) -> None:
    first, second = (batch_of(predictors, rows, t) for t in (0.9, 1.1))
    second.seed.add_(1)
    expected = [predictors["fast"].predict(batch) for batch in (first, second)]
    runner = capture(predictors["fast"], first)
    assert torch.equal(runner(), expected[0])
    for static, given in zip(runner.inputs, second.tensors(), strict=True):
        static.copy_(given)
    for _ in range(3):
        assert torch.equal(runner(), expected[1])
    runner.close()


def test_a_row_does_not_depend_on_its_batch(predictors: dict[str, CodePredictor]) -> None:
    """Up to near ties: a batch of another size is another order of bfloat16 sums."""
    rows = 32
    batch = batch_of(predictors, rows, 0.9)
    together = predictors["fast"].predict(batch)
    alone = [
        FrameBatch(*(getattr(batch, f.name)[row : row + 1] for f in fields(FrameBatch)))
        for row in range(rows)
    ]
    # The first code that differs changes all that follow, so only the first group is compared.
    same = [
        predictors["fast"].predict(one)[0, 0] == together[row, 0] for row, one in enumerate(alone)
    ]
    assert sum(map(int, same)) >= 0.9 * rows


def samples(logits: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    rows, vocab = logits.shape
    seed = torch.arange(rows, device="cuda") * 7919 - 1000
    frame = torch.arange(rows, device="cuda")
    temperatures = torch.full((rows,), temperature, device="cuda")
    top_ks = torch.full((rows,), top_k, device="cuda")
    top_ps = torch.full((rows,), top_p, device="cuda")
    codes = torch.full((rows, 15), -1, device="cuda")
    table = torch.randn(vocab, 1024, device="cuda").bfloat16()
    following = torch.empty(rows, 1024, device="cuda", dtype=torch.bfloat16)
    sample_row(logits, seed, frame, temperatures, top_ks, top_ps, 3, 2, codes, table, following)
    assert torch.equal(following, table[codes[:, 2]])
    assert (codes != -1).sum() == rows
    return codes[:, 2], sample(logits, temperatures, top_ks, top_ps, uniform(seed, frame, 3))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(0.0, 0, 1.0), (0.9, 50, 1.0), (1.0, 0, 1.0), (0.7, 1, 1.0), (0.9, 0, 0.8), (1.3, 20, 0.5),
     (0.9, 5000, 1.0), (0.9, 3, 0.0)],
)  # fmt: skip
def test_sampling_equals_the_reference(temperature: float, top_k: int, top_p: float) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(4096, 2048, generator=generator, device="cuda") * 3
    got, expected = samples(logits, temperature, top_k, top_p)
    # Sums in another order move the borders between codes by some 1e-6 of the mass.
    allowed = 0 if temperature == 0 or top_k == 1 or top_p == 0 else 8
    assert (got != expected).sum() <= allowed


@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, 0), (0.9, 50), (0.9, 0), (0.9, 3000)])
def test_forbidden_codes_are_never_drawn(temperature: float, top_k: int) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    logits = torch.randn(1024, 3072, generator=generator, device="cuda") * 3
    logits[:, 2048:] = float("-inf")
    got, expected = samples(logits, temperature, top_k, 1.0)
    assert got.max() < 2048
    assert (got != expected).sum() <= (0 if temperature == 0 else 2)


def test_equal_logits_are_kept_or_dropped_together() -> None:
    logits = torch.full((512, 2048), -4.0, device="cuda")
    logits[:, 100:160] = 1.0
    logits[:, 1000] = 2.0
    for temperature, top_k, top_p in ((0.0, 0, 1.0), (1.0, 10, 1.0), (1.0, 0, 0.5), (1.0, 0, 1.0)):
        got, expected = samples(logits, temperature, top_k, top_p)
        assert (got != expected).sum() <= 1
    flat = torch.zeros(512, 2048, device="cuda")
    got, expected = samples(flat, 1.0, 50, 0.9)
    assert (got != expected).sum() <= 1
