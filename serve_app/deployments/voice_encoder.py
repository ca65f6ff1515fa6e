"""The voice encoder's deployment: recordings in, what cloned voices are made of out.

Beside the stages, which never call it: the ingress does, once per voice, and nothing runs while
nobody makes any.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppConfig
from serve_app.deployments.calls import from_ray
from serve_app.deployments.ray_serve import replica, starts
from serve_app.errors import SpeechError, StageFailed, StageUnavailable
from serve_app.types import EncodedClip

VOICE_ENCODER: Final = "VoiceEncoder"
# A replica's start included.
_LONGEST_S: Final = 120.0


class Encodes(Protocol):
    def encode(self, samples: np.ndarray) -> EncodedClip:
        """As `protocols.VoiceEncoder.encode`, on the thread that calls."""
        ...


def load(config: AppConfig, device: str) -> Encodes:
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.voice_encoder.stage import ClipEncoder

    return ClipEncoder(open_checkpoint(checkpoint_folder(config)), device)


@serve.deployment(name=VOICE_ENCODER)
class VoiceEncoderDeployment:
    """Encodes one recording at a time on a thread; Serve queues the others, so many and no more.

    One that has failed is not healthy, and Serve replaces it: a device may not recover.
    """

    @starts.saying_why
    async def __init__(
        self, config: AppConfig, device: str, load: Callable[[AppConfig, str], Encodes] = load
    ) -> None:
        replica.begin()
        self._failure: str | None = None
        self._encoder = await asyncio.to_thread(load, config, device)

    async def encode(self, samples: np.ndarray) -> EncodedClip:
        """As `protocols.VoiceEncoder.encode`."""
        try:
            return await asyncio.to_thread(self._encoder.encode, samples)
        except SpeechError:
            raise
        except Exception as error:
            self._failure = f"the voice encoder failed: {error!r}"
            raise StageFailed(self._failure) from error

    async def check_health(self) -> None:
        if self._failure is not None:
            raise StageFailed(self._failure)


class RemoteVoiceEncoder:
    """Implements `protocols.VoiceEncoder` by a handle of the deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        # Plain pickle, as between stages: a recording is one array.
        encoder = handle.options(request_serialization="pickle", response_serialization="pickle")
        self._encode = encoder.encode.remote

    async def encode(self, samples: np.ndarray) -> EncodedClip:
        response: Any = self._encode(samples)
        try:
            async with asyncio.timeout(_LONGEST_S):
                return await response
        except TimeoutError as error:
            response.cancel()
            raise StageUnavailable("the voice encoder does not answer") from error
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            raise from_ray(error) from error
