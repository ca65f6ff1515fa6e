"""The code predictor that is compiled for a CPU makes the eager one's codes."""

from collections.abc import Iterator

import pytest
import torch

from load_tests.stages.code_predictor import random_batch, random_weights
from serve_app.models.checkpoint.spec import CodePredictorSpec, TransformerSpec
from serve_app.models.code_predictor.compiled import CompiledCodePredictor
from serve_app.models.code_predictor.model import CodePredictor, FrameBatch

pytestmark = pytest.mark.unit

# temperature, top_k, top_p
GREEDY = (0.0, 0, 1.0)
MANNERS = [GREEDY, (0.7, 30, 1.0), (1.0, 0, 1.0), (0.9, 50, 0.8), (1.3, 1, 0.5), (1.0, 200, 0.99)]


def spec_of(groups: int, width: int, layers: int = 2) -> CodePredictorSpec:
    shape = TransformerSpec(48, 96, layers, 4, 2, 16, 1e-6, 1e6)
    return CodePredictorSpec(shape, 128, groups, width, 160)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def both(spec: CodePredictorSpec) -> tuple[CodePredictor, CodePredictor]:
    given = (spec, *random_weights(spec, "cpu"), torch.device("cpu"), torch.float32)
    return CodePredictor(*given), CompiledCodePredictor(*given)


def batch_of(
    spec: CodePredictorSpec, rows: int, manner: tuple[float, int, float], seed: int = 0
) -> FrameBatch:
    temperature, top_k, top_p = manner
    batch = random_batch(spec, rows, torch.float32, "cpu", temperature)
    batch.top_k.fill_(top_k)
    batch.top_p.fill_(top_p)
    batch.seed.add_(seed * 2**40)
    batch.hidden.add_(
        torch.randn(batch.hidden.shape, generator=torch.Generator().manual_seed(seed))
    )
    return batch


@pytest.mark.parametrize(
    "spec",
    [spec_of(8, 64), spec_of(16, 48, layers=1), spec_of(2, 64)],
    ids=["projection", "no projection", "a single pass"],
)
def test_codes_are_the_eager_ones(spec: CodePredictorSpec) -> None:
    eager, compiled = both(spec)
    for manner in MANNERS:
        for turn in range(8):
            batch = batch_of(spec, 1 + turn, manner, turn)
            assert torch.equal(compiled.predict(batch), eager.predict(batch)), manner


def test_a_stream_does_not_depend_on_the_others() -> None:
    spec = spec_of(8, 64)
    _, compiled = both(spec)
    together = batch_of(spec, 5, (1.0, 0, 1.0))
    codes = compiled.predict(together)
    for row in range(5):
        alone = FrameBatch(*(part[row : row + 1] for part in together.tensors()))
        assert torch.equal(compiled.predict(alone)[0], codes[row])


def test_streams_of_one_batch_draw_in_different_manners() -> None:
    spec = spec_of(8, 64)
    eager, compiled = both(spec)
    batch = batch_of(spec, 6, GREEDY)
    for row, (temperature, top_k, top_p) in enumerate(MANNERS):
        batch.temperature[row], batch.top_k[row], batch.top_p[row] = temperature, top_k, top_p
    assert torch.equal(compiled.predict(batch), eager.predict(batch))


def test_equal_maxima_give_the_first_code() -> None:
    spec = spec_of(3, 64)
    tensors, codec = random_weights(spec, "cpu")
    tensors = {
        name: torch.zeros_like(tensor) if name.startswith("lm_head") else tensor
        for name, tensor in tensors.items()
    }
    given = (spec, tensors, codec, torch.device("cpu"), torch.float32)
    eager, compiled = CodePredictor(*given), CompiledCodePredictor(*given)
    assert not compiled.predict(batch_of(spec, 2, GREEDY)).any()
    # All codes are equally likely, and all are as good as the best five.
    for manner in ((1.0, 5, 1.0), (1.0, 0, 1.0), (0.5, 0, 0.3)):
        batch = batch_of(spec, 4, manner)
        assert torch.equal(compiled.predict(batch), eager.predict(batch)), manner
