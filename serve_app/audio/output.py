"""What the audio of a response is to be, and the chain that makes it: samples -> speed and sample
rate -> encoder.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Final

import numpy as np

from serve_app.audio.filters import PcmFilter
from serve_app.audio.formats import AudioFormat, Encoder

# As `AudioFormat.cost`, of speed and sample rate.
_FILTER_COST: Final = 0.002


@dataclass(frozen=True)
class Output:
    """A format and how the model's samples get there.

    Attributes:
        model_hz: sample rate of the samples that come.
        wanted_hz: the one asked for; a format that does not have it takes the next higher one.
    """

    format: AudioFormat
    model_hz: int
    wanted_hz: int | None = None
    speed: float = 1.0

    @cached_property
    def sample_rate_hz(self) -> int:
        return self.format.rate_hz(self.wanted_hz or self.model_hz)

    @property
    def content_type(self) -> str:
        return self.format.content_type(self.sample_rate_hz)

    @property
    def is_costly(self) -> bool:
        """Whether there is work beside handing samples on."""
        return self.format.cost > 0 or self._is_filtered

    def work_s(self, num_samples: int) -> float:
        """About how long a core is busy with `num_samples` of the model, in seconds."""
        cost = self.format.cost + (_FILTER_COST if self._is_filtered else 0.0)
        return cost * num_samples / self.model_hz / self.speed

    def seconds(self, num_samples: int) -> float:
        """Length of the audio that `num_samples` of the model become."""
        return num_samples / self.model_hz / self.speed

    def stream(self) -> Encoder:
        """The chain of a response whose length is not known yet."""
        encoder = self.format.encoder(self.sample_rate_hz)
        return _Filtered(self._filter(), encoder) if self._is_filtered else encoder

    def file(self, samples: np.ndarray) -> bytes:
        """A complete file of int16 [N], with exact sizes in its header."""
        if self._is_filtered:
            stage = self._filter()
            samples = np.concatenate([stage.filter(samples), stage.finish()])
        encoder = self.format.encoder(self.sample_rate_hz, len(samples))
        return encoder.encode(samples) + encoder.finish()

    def write(self, parts: Iterable[np.ndarray], num_samples: int, file: BinaryIO) -> None:
        """Write what `file` would give for int16 `parts`, `num_samples` together, part by part."""
        stage = self._filter() if self._is_filtered else None
        num_made = num_samples if stage is None else stage.length(num_samples)
        encoder = self.format.encoder(self.sample_rate_hz, num_made, file)
        for samples in parts:
            file.write(encoder.encode(samples if stage is None else stage.filter(samples)))
        if stage is not None:
            file.write(encoder.encode(stage.finish()))
        file.write(encoder.finish())

    @property
    def _is_filtered(self) -> bool:
        # A filter costs first audio some 80 ms of input, so that it is left out where it can be.
        return self.speed != 1 or self.sample_rate_hz != self.model_hz

    def _filter(self) -> PcmFilter:
        return PcmFilter(self.model_hz, self.sample_rate_hz, self.speed)


class _Filtered:
    """An encoder behind a filter."""

    def __init__(self, stage: PcmFilter, encoder: Encoder) -> None:
        self._stage = stage
        self._encoder = encoder

    def encode(self, samples: np.ndarray) -> bytes:
        ready = self._stage.filter(samples)
        return self._encoder.encode(ready) if len(ready) else b""

    def finish(self) -> bytes:
        return self._encoder.encode(self._stage.finish()) + self._encoder.finish()
