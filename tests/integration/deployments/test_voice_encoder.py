"""The voice encoder's deployment, asked through the handle that an ingress has."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from ray import serve

from serve_app.config import AppConfig
from serve_app.deployments.voice_encoder import RemoteVoiceEncoder, VoiceEncoderDeployment
from serve_app.errors import InvalidRequest, StageFailed
from serve_app.types import EncodedClip
from tests.parity.clips import recording


def deployed(folder: Path) -> RemoteVoiceEncoder:
    """In this process and without a cluster."""
    config = AppConfig.model_validate({"model": str(folder)})
    return RemoteVoiceEncoder(
        serve.run(VoiceEncoderDeployment.bind(config, "cpu"), _local_testing_mode=True)
    )


def test_recordings_come_back_encoded_or_refused(tiny_checkpoint) -> None:
    async def scenario() -> None:
        encoder = deployed(tiny_checkpoint("base"))
        clips = [recording(40_000 + 5_000 * seed, seed) for seed in range(4)]
        together = await asyncio.gather(*(encoder.encode(clip) for clip in clips))
        for clip, encoded in zip(clips, together, strict=True):
            alone = await encoder.encode(clip)
            np.testing.assert_array_equal(encoded.codes, alone.codes)
            np.testing.assert_array_equal(encoded.speaker_vector, alone.speaker_vector)
            assert encoded.codes.shape == (-(-len(clip) // 1920), 16)
            assert encoded.speaker_vector.shape == (64,)
        with pytest.raises(InvalidRequest, match=r"60\.10 s long; 0\.1 to 60 s"):
            await encoder.encode(recording(24_000 * 60 + 2_400))

    asyncio.run(scenario())


class Broken:
    def encode(self, samples: np.ndarray) -> EncodedClip:
        raise RuntimeError(f"no device for {len(samples)} samples")


def test_one_whose_device_fails_says_so_and_is_not_healthy() -> None:
    async def scenario() -> None:
        broken = VoiceEncoderDeployment.bind(AppConfig(), "cpu", lambda config, device: Broken())
        handle = serve.run(broken, _local_testing_mode=True)
        await handle.check_health.remote()
        with pytest.raises(StageFailed, match="no device for 24000 samples"):
            await RemoteVoiceEncoder(handle).encode(recording(24_000))
        with pytest.raises(StageFailed, match="no device"):
            await handle.check_health.remote()

    asyncio.run(scenario())
