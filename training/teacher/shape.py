"""Sizes of the teacher's network."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherShape:
    """Kokoro-82M by default.

    style: half of a row of a voice's table; the first half shapes sound, the second prosody.
    upsampling, channels: of the generator's two stages.
    fft, hop: of the spectra that it makes and, of the harmonics, hears; in samples.
    """

    symbols: int = 178
    positions: int = 512
    embedding: int = 128
    width: int = 768
    heads: int = 12
    inner: int = 2048
    layers: int = 12
    hidden: int = 512
    style: int = 128
    durations: int = 50
    decoder: int = 1024
    residual: int = 64
    upsampling: tuple[int, int] = (10, 6)
    channels: tuple[int, int] = (256, 128)
    kernels: tuple[int, ...] = (3, 7, 11)
    harmonics: int = 9
    fft: int = 20
    hop: int = 5

    @property
    def step_samples(self) -> int:
        """Samples of one unit of the durations."""
        return 2 * self.source_samples

    @property
    def source_samples(self) -> int:
        """Samples for which one value of the melody holds."""
        return self.upsampling[0] * self.upsampling[1] * self.hop
