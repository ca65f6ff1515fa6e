"""Whatever the engine could not compute is refused by field, before it gets there."""

import dataclasses

import numpy as np
import pytest

from serve_app.errors import InvalidRequest
from serve_app.models.checkpoint.reading import read_spec
from serve_app.models.checkpoint.spec import ModelSpec
from serve_app.models.talker.checks import check_work
from serve_app.models.talker.runtime import TalkerPrompt
from serve_app.types import Prompt, Sampling
from tests.conftest import TinyCheckpoint

POSITIONS, ROWS, FRAMES, GROUPS = 100, 10, 20, 16
PLAIN = Sampling(0.9, 50, 1.0)
VECTOR = np.ones(64, np.float32)


@pytest.fixture
def spec(tiny_checkpoint: TinyCheckpoint) -> ModelSpec:
    return read_spec(tiny_checkpoint())


def work(done: np.ndarray | None = None, **changes: object) -> TalkerPrompt:
    prompt = Prompt(
        request_id="r",
        rows=np.full((ROWS, 1 + GROUPS), -1, np.int32),
        trailing_text=np.zeros(3, np.int32),
        pad_text_id=0,
        talker=PLAIN,
        subtalker=PLAIN,
        seed=1,
        min_new_tokens=2,
        max_new_tokens=FRAMES,
    )
    if done is None:
        done = np.zeros((5, GROUPS), np.int64)
    return TalkerPrompt(dataclasses.replace(prompt, **changes), done)


def filled(shape: tuple[int, int], column: int, value: int) -> np.ndarray:
    ids = np.zeros(shape, np.int64)
    ids[-1, column] = value
    return ids


def test_what_fits_passes_up_to_the_last_position_and_id(spec: ModelSpec) -> None:
    check_work(work(), spec, POSITIONS)
    check_work(work(max_new_tokens=POSITIONS - ROWS), spec, POSITIONS)
    check_work(work(done=np.zeros((FRAMES, GROUPS), np.int64)), spec, POSITIONS)
    check_work(work(done=filled((5, GROUPS), 0, spec.talker.num_codes - 1)), spec, POSITIONS)
    check_work(work(trailing_text=np.zeros(FRAMES, np.int32)), spec, POSITIONS)
    check_work(work(seed=-(2**63)), spec, POSITIONS)
    check_work(work(speaker_vector=VECTOR, speaker_position=ROWS - 1), spec, POSITIONS)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"trailing_text": np.zeros(FRAMES + 1, np.int32)}, "max_new_tokens"),
        ({"speaker_vector": VECTOR[:63], "speaker_position": 1}, "voice"),
        ({"speaker_vector": VECTOR * np.nan, "speaker_position": 1}, "voice"),
        # In bfloat16 they are infinite.
        ({"speaker_vector": VECTOR * np.finfo(np.float32).max, "speaker_position": 1}, "voice"),
        ({"speaker_vector": VECTOR, "speaker_position": -1}, "voice"),
        ({"speaker_vector": VECTOR, "speaker_position": ROWS}, "voice"),
        ({"max_new_tokens": POSITIONS - ROWS + 1}, "input"),
        ({"rows": np.zeros((0, 1 + GROUPS), np.int32)}, "input"),
        ({"rows": np.zeros((ROWS, GROUPS), np.int32)}, "input"),
        ({"rows": np.zeros((ROWS, 1 + GROUPS), np.float32)}, "input"),
        ({"rows": filled((ROWS, 1 + GROUPS), 0, 1 << 30)}, "input"),
        ({"rows": filled((ROWS, 1 + GROUPS), 1, 3072)}, "input"),
        ({"rows": filled((ROWS, 1 + GROUPS), 2, 2048)}, "input"),
        ({"rows": filled((ROWS, 1 + GROUPS), 5, -2)}, "input"),
        ({"trailing_text": np.full(2, -1, np.int32)}, "input"),
        ({"pad_text_id": -1}, "input"),
        ({"min_new_tokens": FRAMES + 1}, "min_new_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"talker": dataclasses.replace(PLAIN, top_k=2**63)}, "top_k"),
        ({"subtalker": dataclasses.replace(PLAIN, temperature=float("nan"))}, None),
        ({"talker": dataclasses.replace(PLAIN, repetition_penalty=0.0)}, None),
        ({"done": np.zeros((FRAMES + 1, GROUPS), np.int64)}, "max_new_tokens"),
        ({"done": np.zeros((5, GROUPS - 1), np.int64)}, "done"),
        ({"done": np.zeros(GROUPS, np.int64)}, "done"),
        ({"done": filled((5, GROUPS), 0, 2048)}, "done"),
        ({"done": filled((5, GROUPS), 3, 2048)}, "done"),
        ({"done": filled((5, GROUPS), 0, -1)}, "done"),
    ],
)
def test_what_does_not_fit_is_refused_by_field(
    spec: ModelSpec, changes: dict[str, object], param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_work(work(**changes), spec, POSITIONS)
    assert caught.value.param == param
