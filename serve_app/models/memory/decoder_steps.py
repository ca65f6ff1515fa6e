"""How large a step of the speech decoder may be."""

from collections.abc import Sequence
from typing import Final

from serve_app.config import SpeechDecoderConfig
from serve_app.models.checkpoint.spec import SpeechDecoderSpec

# Activations of one step are kept below this; about four tensors of the widest stage live at once.
_MAX_STEP_BYTES: Final = 1 << 30
_LIVE_TENSORS: Final = 4


def step_rows(
    spec: SpeechDecoderSpec,
    itemsize: int,
    num_frames: int,
    batch_sizes: Sequence[int],
    max_streams: int,
) -> tuple[int, ...]:
    """The numbers of streams that steps of pieces of `num_frames` have, in ascending order: of
    `batch_sizes` those whose activations, of `itemsize` bytes a value, fit and that `max_streams`
    can need.
    """
    width = spec.decoder_dim >> len(spec.upsample_rates)
    frame_bytes = _LIVE_TENSORS * spec.samples_per_frame * width * itemsize
    limit = max(1, _MAX_STEP_BYTES // (frame_bytes * num_frames))
    needed = [size for size in sorted(batch_sizes) if size < max_streams]
    needed += [size for size in sorted(batch_sizes) if size >= max_streams][:1]
    return tuple(size for size in needed if size <= limit) or (1,)


def largest_step(spec: SpeechDecoderSpec, itemsize: int, config: SpeechDecoderConfig) -> int:
    """Frames of all streams in the largest step."""
    return max(
        size * step_rows(spec, itemsize, size, config.batch_sizes, config.max_streams)[-1]
        for size in (1, *config.chunk_frames)
    )
