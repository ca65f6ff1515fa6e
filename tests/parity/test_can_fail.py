"""The comparisons of test_talker.py notice it when the property that they state is broken."""

import dataclasses

import numpy as np
import pytest
import torch

from serve_app.config import CodePredictorConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.types import SamplingOverrides
from tests.parity.engines import first_difference, request, speak, talker

TEXT = "A sentence of some length, said by one of the voices."
SAMPLED = SamplingOverrides(temperature=0.9, top_k=50)
# Strong enough that a forgotten history changes the next code for certain.
PENALISED = SamplingOverrides(temperature=0.0, repetition_penalty=3.0)


@pytest.fixture(scope="module")
def path(tiny_checkpoint):
    return tiny_checkpoint("custom_voice", "tiny", eos="unreachable")


def requests(count: int, **fields):
    defaults = {"talker": SAMPLED, "subtalker": SAMPLED, "max_new_tokens": 20}
    return [request(TEXT, **{**defaults, "seed": i, **fields}) for i in range(count)]


def test_a_resumed_stream_with_the_history_of_another_differs(path, monkeypatch) -> None:
    (asked,) = requests(1, talker=PENALISED)
    with talker(path) as engine:
        whole = speak(engine, [asked])[0]
        assert np.array_equal(speak(engine, [asked], done=[whole[:10]])[0], whole[10:])
        others = torch.from_numpy(whole[10:, 0].copy())
        monkeypatch.setattr(
            "serve_app.models.talker.arrivals._write_history",
            lambda one, table, _: table.seen[one.slot].index_fill_(0, others, True),
        )
        broken = speak(engine, [asked], done=[whole[:10]])[0]
    assert first_difference(broken, whole[10:]) != "equal"


class Forgetful(dict):
    """A store of preempted codes that gives back silence."""

    def __setitem__(self, key, value) -> None:
        super().__setitem__(key, torch.full_like(value, int(value.min())))


def test_a_preempted_stream_without_its_codes_differs(path) -> None:
    asked = requests(12)
    per_block = 32 * 2 * 3 * 2 * 32 * 4
    with talker(path) as engine:
        whole = speak(engine, asked)
    with talker(path, max_model_len=256, kv_cache_bytes=9 * per_block) as engine:
        engine.inspect.core.runner.model_state.suspended = Forgetful()
        broken = speak(engine, asked)
        assert engine.stats()["preemptions"] > 0
    assert any(first_difference(a, b) != "equal" for a, b in zip(broken, whole, strict=True))


class RowSeeded(InProcessFrames):
    """A predictor whose random numbers depend on the row of the batch."""

    def predict(self, batch):
        rows = torch.arange(len(batch.seed))
        return super().predict(dataclasses.replace(batch, seed=rows))


def test_a_batch_with_seeds_by_row_differs_from_singles(path) -> None:
    asked = requests(4)
    frames = RowSeeded.load(open_checkpoint(path), CodePredictorConfig(), "cpu")
    with talker(path, predictor=frames) as engine:
        together = speak(engine, asked)
        alone = [speak(engine, [one])[0] for one in asked]
    assert any(first_difference(a, b) != "equal" for a, b in zip(together, alone, strict=True))
