"""The teacher's whole network."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from training.teacher.layers import Valid
from training.teacher.reading import Albert, Predictor, TextEncoder
from training.teacher.shape import TeacherShape
from training.teacher.sound import Decoder


@dataclass(frozen=True)
class Reading:
    """A sentence that was read and can be spoken.

    phonemes: [N, hidden] and prosody: [N, hidden + style], both on the device.
    style: [2 * style] on the device.
    steps: how long each phoneme lasts.
    """

    phonemes: Tensor
    prosody: Tensor
    style: Tensor
    steps: tuple[int, ...]

    @property
    def length(self) -> int:
        """Steps in all."""
        return sum(self.steps)


class Kokoro(nn.Module):
    """Reads sentences, and speaks what it read, many at a time and each as if it were alone."""

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.shape = shape
        self.bert = Albert(shape)
        self.bert_encoder = nn.Linear(shape.width, shape.hidden)
        self.text_encoder = TextEncoder(shape)
        self.predictor = Predictor(shape)
        self.decoder = Decoder(shape)

    def read(self, tokens: list[Tensor], styles: Tensor) -> list[Reading]:
        """Find how sentences are spoken.

        Args:
            tokens: int64 [N] each, on the host, edges included.
            styles: [B, 2 * style] on the device.
        """
        device = styles.device
        lengths = [len(ids) for ids in tokens]
        valid = Valid.of(lengths, max(lengths), device)
        padded = pad_sequence(tokens, batch_first=True).to(device)
        meaning = self.bert_encoder(self.bert(padded, valid))
        prosody, steps = self.predictor.durations(meaning, styles[:, self.shape.style :], valid)
        phonemes = self.text_encoder(padded, valid)
        return [
            Reading(
                phonemes[row, :length], prosody[row, :length], styles[row], tuple(taken[:length])
            )
            for row, (length, taken) in enumerate(zip(lengths, steps.tolist(), strict=True))
        ]

    def speak(self, readings: list[Reading], size: int) -> Tensor:
        """Say what was read, each sentence padded to `size` steps.

        Returns:
            Samples float32 [B, size * step_samples] on the device; in the padding, anything.
        """
        device = readings[0].style.device
        valid = Valid.of([reading.length for reading in readings], size, device)
        held = [torch.repeat_interleave(torch.tensor(reading.steps)) for reading in readings]
        index = pad_sequence(held, batch_first=True)
        index = F.pad(index, (0, size - index.shape[1])).to(device, non_blocking=True)
        styles = torch.stack([reading.style for reading in readings])
        sound, manner = styles.split(self.shape.style, dim=-1)

        def along(values: list[Tensor]) -> Tensor:
            padded = pad_sequence(values, batch_first=True)
            where = index.unsqueeze(-1).expand(-1, -1, padded.shape[-1])
            return padded.gather(1, where)

        prosody = along([reading.prosody for reading in readings])
        melody, loudness = self.predictor.curves(prosody, manner, valid)
        phonemes = along([reading.phonemes for reading in readings])
        return self.decoder(phonemes, melody, loudness, sound, valid)
