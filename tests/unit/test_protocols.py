"""What becomes of a stage's health where somebody needs it to work."""

import asyncio
import pickle

import numpy as np
import pytest

from serve_app.errors import StageFailed, StageUnavailable
from serve_app.fakes import FakeSpeechDecoder, FakeTalker, FakeVoiceEncoder
from serve_app.protocols import require
from serve_app.types import ClonedVoice, Health, SpeechRequest


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


def test_a_stand_in_encodes_the_same_samples_alike_and_others_otherwise() -> None:
    encoder = FakeVoiceEncoder()
    samples = np.sin(np.arange(5000, dtype=np.float32))
    first, again, other = (
        asyncio.run(encoder.encode(clip)) for clip in (samples, samples.copy(), samples[1:])
    )
    assert first.codes.shape == (3, 4)
    assert first.speaker_vector.dtype == np.float32
    assert np.array_equal(first.speaker_vector, again.speaker_vector)
    assert not np.array_equal(first.codes, other.codes)


def test_a_cloned_voice_travels_with_all_that_it_is() -> None:
    voice = ClonedVoice(np.ones(8, np.float32), np.ones((3, 4), np.int64), "Hello.", "mum")
    request = SpeechRequest("r", "m", "Hi.", voice, "auto", seed=1)
    arrived: ClonedVoice = pickle.loads(pickle.dumps(request)).voice
    assert (str(arrived), arrived.reference_text) == ("mum", "Hello.")
    assert arrived.reference_codes is not None
    assert np.array_equal(arrived.reference_codes, np.ones((3, 4)))
