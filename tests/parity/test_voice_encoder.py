"""Vectors and codes of a recording are the reference's, whatever its length."""

from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import CheckpointError, InvalidRequest
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.voice_encoder.stage import ClipEncoder
from tests.conftest import TinyCheckpoint
from tests.parity.clips import recording
from tests.parity.reference import Reference

# float32 sums in another order; the vectors' values are around one.
TOLERANCE = 1e-5
# The shortest, whole numbers of frames and others, within a window of attention and beyond it.
LENGTHS = (2400, 24000, 57600, 47123, 100_001, 720_000)


@pytest.fixture(scope="module", params=["tiny", "tiny-0b6"])
def path(tiny_checkpoint: TinyCheckpoint, request: pytest.FixtureRequest) -> Path:
    return tiny_checkpoint("base", request.param)


def test_a_recording_is_encoded_as_by_the_reference(path: Path) -> None:
    ours = ClipEncoder(open_checkpoint(path), "cpu")
    theirs = Reference(path)
    for seed, length in enumerate(LENGTHS):
        samples = recording(length, seed)
        clip, item = ours.encode(samples), theirs.clone(samples, "Hello.")
        assert clip.codes.dtype == np.int64
        assert np.array_equal(clip.codes, item.ref_code.numpy())
        assert len(clip.codes) == -(-length // 1920)
        expected = item.ref_spk_embedding.numpy()
        np.testing.assert_allclose(clip.speaker_vector, expected, rtol=0, atol=TOLERANCE)


def test_what_is_no_clip_is_refused(tiny_checkpoint: TinyCheckpoint) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("base"))
    encoder = ClipEncoder(checkpoint, "cpu")
    for samples, why in (
        (recording(2_000), r"0\.08 s long; 0\.1 to 60 s"),
        (recording(24_000 * 61), r"61\.00 s long"),
        (recording(48_000).reshape(2, -1), "one channel"),
        (np.full(48_000, np.nan, np.float32), "one channel"),
        (np.zeros(48_000, np.float64), "one channel"),
    ):
        with pytest.raises(InvalidRequest, match=why) as refused:
            encoder.encode(samples)
        assert refused.value.code == "invalid_ref_audio"


def test_only_a_base_checkpoint_encodes_voices(tiny_checkpoint: TinyCheckpoint) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("custom_voice"))
    with pytest.raises(CheckpointError, match="clones no voices"):
        ClipEncoder(checkpoint, "cpu")
