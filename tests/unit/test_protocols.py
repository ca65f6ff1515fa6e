"""What becomes of a stage's health where somebody needs it to work."""

import pickle

import pytest

from serve_app.errors import StageFailed, StageUnavailable
from serve_app.fakes import FakeSpeechDecoder, FakeTalker
from serve_app.protocols import require
from serve_app.types import Health


def test_a_stage_that_works_passes_however_long_it_has_been_busy() -> None:
    require(Health(busy_s=25.0))
    require(FakeTalker().health())
    require(FakeSpeechDecoder().health())


def test_one_that_cannot_says_why_and_since_when() -> None:
    closed = Health("unavailable", "it is closed")
    with pytest.raises(StageUnavailable, match=r"it is closed .*last progress: none yet"):
        require(closed)
    stuck = Health("failed", "it is stuck", busy_s=31.2, progress_s=40.0)
    with pytest.raises(StageFailed, match=r"it is stuck \(busy for 31 s, last progress: 40 s ago"):
        require(pickle.loads(pickle.dumps(stuck)))
