"""The teacher says each sentence of a batch as it says it alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.unit.training.teachers import TINY, tiny_teacher
from training.teacher import Kokoro, Reading, TeacherShape
from training.teacher.layers import Convolution, Doubling, Recurrent, Upsampling, Valid, moments
from training.teacher.sound import Generator, Harmonics, SnakeBlock

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


def sentences(lengths: list[int]) -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(5)
    tokens = [torch.randint(24, (length,), generator=generator) for length in lengths]
    return tokens, torch.randn(len(lengths), 16, generator=generator)


def spoken(network: Kokoro, readings: list[Reading], more: int = 0) -> list[Tensor]:
    audio = network.speak(readings, max(reading.length for reading in readings) + more)
    return [
        row[: reading.length * TINY.step_samples]
        for row, reading in zip(audio, readings, strict=True)
    ]


def apart(heard: Tensor, expected: Tensor) -> float:
    """How much differs, of the whole."""
    assert heard.shape == expected.shape
    return float((heard - expected).norm() / expected.norm())


@pytest.mark.parametrize("more", [0, 7])
def test_a_batch_says_what_each_sentence_says_alone(more: int) -> None:
    network = tiny_teacher()
    tokens, styles = sentences([12, 3, 25, 9])
    together = network.read(tokens, styles)
    for index, heard in enumerate(spoken(network, together, more)):
        alone = network.read(tokens[index : index + 1], styles[index : index + 1])
        assert alone[0].steps == together[index].steps
        torch.testing.assert_close(together[index].phonemes, alone[0].phonemes)
        torch.testing.assert_close(together[index].prosody, alone[0].prosody)
        expected = spoken(network, alone)[0]
        assert expected.std() > 0.01
        assert apart(heard, expected) < 1e-3


def test_half_the_bits_say_the_same() -> None:
    network = tiny_teacher()
    readings = network.read(*sentences([12, 3]))
    expected = spoken(network, readings)
    network.decoder.generator.halve()
    for heard, whole in zip(spoken(network, readings), expected, strict=True):
        assert 0 < apart(heard, whole) < 1e-2


def test_a_sentence_does_not_hear_its_neighbours() -> None:
    network = tiny_teacher()
    tokens, styles = sentences([6, 20, 31])
    first, *others = network.read(tokens, styles)
    beside = [spoken(network, [first, other])[0] for other in others]
    assert apart(*beside) < 1e-3
    assert len(beside[0]) == 600 * sum(first.steps)


def test_styles_and_phonemes_change_what_is_said() -> None:
    network = tiny_teacher()
    tokens, styles = sentences([6, 6])
    one, two = network.read([tokens[0], tokens[0]], styles)
    assert not torch.allclose(one.prosody, two.prosody)
    one, two = network.read(tokens, styles[:1].expand(2, -1))
    assert not torch.allclose(one.phonemes, two.phonemes)


def test_moments_count_valid_steps_alone() -> None:
    x = torch.randn(2, 9, 3)
    mean, variance = moments(x, Valid.of([9, 4], 9, CPU))
    torch.testing.assert_close(mean[1], x[1, :4].mean(0))
    torch.testing.assert_close(variance[1], x[1, :4].var(0, correction=0))


@pytest.mark.parametrize("channels", [3, 8])
def test_convolutions_over_the_last_axis_are_torchs(channels: int) -> None:
    x = torch.randn(2, 30, channels)
    layer = Convolution(channels, 4, 5, stride=2, padding=4, dilation=2)
    torch.testing.assert_close(layer(x), nn.Conv1d.forward(layer, x.mT).mT)


def test_upsampling_is_torchs_transposed_convolution() -> None:
    x = torch.randn(2, 7, 6)
    layer = Upsampling(6, 4, 10)
    expected = F.conv_transpose1d(x.mT, layer.weight, layer.bias, 10, padding=5).mT
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    layer = Doubling(6)
    torch.testing.assert_close(layer(x), nn.ConvTranspose1d.forward(layer, x.mT).mT)


def test_a_block_without_inner_biases_is_the_block_with_them() -> None:
    block, style, valid = SnakeBlock(8, 3, 4), torch.randn(1, 4), Valid.of([40], 40, CPU)
    x = torch.randn(1, 40, 8)
    expected = x.clone()
    for index in range(3):
        made = expected
        for norm, convolution in (
            (block.adain1[index], block.convs1[index]),
            (block.adain2[index], block.convs2[index]),
        ):
            made = norm(made, style, valid)
            made = convolution(made + torch.sin(made).square())
        expected = expected + made
    torch.testing.assert_close(block(x, style, valid), expected, rtol=1e-4, atol=1e-5)


def test_an_lstm_begins_backwards_at_each_rows_end() -> None:
    x = torch.randn(2, 8, 6)
    lstm = Recurrent(6, 4)
    made = lstm.over(x, Valid.of([8, 3], 8, CPU))
    torch.testing.assert_close(made[1, :3], lstm(x[1:, :3])[0][0])
    assert not made[1, 3:].any()


def test_harmonics_keep_their_phase_for_half_a_minute() -> None:
    source = Harmonics(TeacherShape(harmonics=1))
    with torch.no_grad():
        source.l_linear.weight.fill_(1.0)
        source.l_linear.bias.zero_()
    count, hertz = 80 * 30, 211.0
    heard = source(torch.full((1, count), hertz))[0].double()
    # The phase rests at that of the first middle, which one value's worth of cycles precedes.
    time = torch.arange(count * 300, dtype=torch.float64)
    time = (time - 149.5).clamp(0, (count - 1) * 300) + 300
    expected = torch.tanh(0.1 * torch.sin(2 * math.pi * hertz * time / 24_000))
    torch.testing.assert_close(heard, expected, rtol=0, atol=2e-4)


def test_unvoiced_steps_have_no_sine() -> None:
    source = Harmonics(TINY)
    wave = source(torch.tensor([[0.0, 0.0, 200.0, 0.0]]))[0].view(4, 300)
    assert wave[[0, 1, 3]].std() < 1e-6 < 1e-4 < wave[2].std()


def test_spectra_mirror_each_row_at_its_own_end() -> None:
    generator = Generator(TINY)
    wave = torch.randn(2, 1200)
    made = generator._spectra(wave, Valid.of([1200, 600], 1200, CPU))
    for row, length in ((0, 1200), (1, 600)):
        expected = torch.stft(
            wave[row, :length], 20, 5, window=torch.hann_window(20), return_complex=True
        )
        found = torch.polar(*made[row, : length // 5 + 1].chunk(2, dim=-1))
        torch.testing.assert_close(found, expected.mT, rtol=1e-3, atol=1e-4)
