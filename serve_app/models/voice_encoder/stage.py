"""The voice encoder stage: a recording in, everything out that a cloned voice is made of."""

import threading
from typing import Final

import numpy as np
import torch

from serve_app.config import LONGEST_CLIP_S, SHORTEST_CLIP_S
from serve_app.errors import CheckpointError, InvalidRequest
from serve_app.models.checkpoint.files import MODEL_WEIGHTS, Checkpoint
from serve_app.models.device import allow_tf32, resolve_device
from serve_app.models.voice_encoder.speaker import SpeakerEncoder
from serve_app.models.voice_encoder.speech import SpeechEncoder
from serve_app.types import EncodedClip

_CODE: Final = "invalid_ref_audio"


class ClipEncoder:
    """Both encoders, in float32 on any device: codes are the same wherever they are made, but for
    ties.

    Args:
        checkpoint: a Base checkpoint.
        device: auto, cuda or cpu.

    Raises:
        CheckpointError: the checkpoint clones no voices.
        StageUnavailable: CUDA is asked for and absent.
    """

    def __init__(self, checkpoint: Checkpoint, device: str) -> None:
        spec = checkpoint.spec.voice_encoder
        if spec is None:
            raise CheckpointError(
                str(checkpoint.path / MODEL_WEIGHTS), "has no speaker encoder: it clones no voices"
            )
        self._sample_rate_hz = spec.speech.sample_rate_hz
        self._device = resolve_device(device, "float32").device
        if self._device.type == "cuda":
            # Rounded inputs would change codes; the process has no other networks.
            allow_tf32(False)
        speech = checkpoint.speech_tokenizer_tensors("encoder.")
        self._speech = SpeechEncoder(spec.speech, speech, self._device)
        speaker = checkpoint.tensors("speaker_encoder.")
        self._speaker = SpeakerEncoder(spec.speaker, speaker, self._device)
        # The memory of one clip at a time is bounded, that of several would not be.
        self._lock = threading.Lock()
        # The first clip is no first: kernels are loaded, and codebooks divided.
        self.encode(np.zeros(int(SHORTEST_CLIP_S * self._sample_rate_hz) + 1, np.float32))

    def encode(self, samples: np.ndarray) -> EncodedClip:
        """Encode a clip: float32 [N] mono, -1..1; blocks, one clip after the other.

        Raises:
            InvalidRequest: too short, too long, or not such samples.
        """
        self._check(samples)
        with self._lock, torch.inference_mode():
            clip = torch.from_numpy(np.array(samples, np.float32)).to(self._device)
            vector, codes = self._speaker(clip), self._speech(clip)
            return EncodedClip(vector.cpu().numpy(), codes.cpu().numpy())

    def _check(self, samples: np.ndarray) -> None:
        if samples.ndim != 1 or samples.dtype != np.float32 or not np.isfinite(samples).all():
            raise InvalidRequest("The recording is not one channel of samples.", None, _CODE)
        seconds = len(samples) / self._sample_rate_hz
        if not SHORTEST_CLIP_S <= seconds <= LONGEST_CLIP_S:
            raise InvalidRequest(
                f"The recording is {seconds:.2f} s long;"
                f" {SHORTEST_CLIP_S:g} to {LONGEST_CLIP_S:g} s are needed.",
                None,
                _CODE,
            )
