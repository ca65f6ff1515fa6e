"""The voice encoder's deployment: recordings in, what cloned voices are made of out.

Beside the stages, which never call it: the ingress does, once per voice, and nothing runs while
nobody makes any.
"""

import asyncio
from typing import Any, Final

import numpy as np
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.config import AppConfig
from serve_app.deployments.calls import from_ray
from serve_app.deployments.ray_serve import port
from serve_app.errors import StageUnavailable
from serve_app.types import EncodedClip

VOICE_ENCODER: Final = "VoiceEncoder"
# A replica's start included.
_LONGEST_S: Final = 120.0


@serve.deployment
class VoiceEncoder:
    """Encodes one recording at a time on a thread; Serve queues the others, so many and no more."""

    async def __init__(self, config: AppConfig, device: str) -> None:
        port.narrow()
        self._encoder = await asyncio.to_thread(_load, config, device)

    async def encode(self, samples: np.ndarray) -> EncodedClip:
        """As `protocols.VoiceEncoder.encode`."""
        return await asyncio.to_thread(self._encoder.encode, samples)


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


def _load(config: AppConfig, device: str):
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.checkpoint.locate import checkpoint_folder
    from serve_app.models.voice_encoder.stage import ClipEncoder

    return ClipEncoder(open_checkpoint(checkpoint_folder(config)), config.voice_encoder, device)
