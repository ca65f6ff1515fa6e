"""What the losses of the codec hear, and what they do not."""

import pytest
import torch

from training.losses import SAMPLE_RATE_HZ, phase_distance, spectral_distance


def voice(phases: torch.Tensor, lowest_hz: float = 150.0, seconds: float = 0.5) -> torch.Tensor:
    """A held vowel of a kind: [1, N], a harmonic for each phase."""
    at = torch.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    numbers = torch.arange(1, len(phases) + 1)[:, None]
    waves = torch.cos(2 * torch.pi * lowest_hz * numbers * at + phases[:, None]) / numbers
    return 0.1 * waves.sum(0, keepdim=True)


@pytest.fixture
def phases() -> torch.Tensor:
    return 2 * torch.pi * torch.rand(16, generator=torch.Generator().manual_seed(3))


def test_equal_and_inverted_speech_have_the_same_phases(phases: torch.Tensor) -> None:
    wave = voice(phases)
    assert float(phase_distance(wave, wave)) == 0
    assert float(phase_distance(-wave, wave)) == pytest.approx(0, abs=1e-6)
    assert float(phase_distance(0.5 * wave, wave)) < 1e-3


def test_phases_are_heard_where_the_mel_spectrum_hears_little(phases: torch.Tensor) -> None:
    wave, other = voice(phases), voice(phases.flip(0))
    detuned = voice(phases, lowest_hz=153.0)
    assert float(phase_distance(other, wave)) > 0.1
    assert float(phase_distance(detuned, wave)) > 0.1
    aligned, _ = spectral_distance(other, wave)
    noise = 0.1 * torch.randn(wave.shape, generator=torch.Generator().manual_seed(1))
    far, _ = spectral_distance(noise, wave)
    assert float(aligned) < 0.3 * float(far)


def test_only_what_is_below_3_khz_counts(phases: torch.Tensor) -> None:
    at = torch.arange(SAMPLE_RATE_HZ // 2) / SAMPLE_RATE_HZ
    wave = voice(phases)
    with_low, with_high = (
        wave + 0.03 * torch.cos(2 * torch.pi * hertz * at) for hertz in (1_230.0, 6_000.0)
    )
    assert float(phase_distance(with_low, wave)) > 20 * float(phase_distance(with_high, wave))


@pytest.mark.parametrize("made", ["silence", "same", "noise", "faint"])
@pytest.mark.parametrize("wanted", ["silence", "voice"])
def test_every_gradient_is_finite(made: str, wanted: str, phases: torch.Tensor) -> None:
    target = voice(phases) if wanted == "voice" else torch.zeros(1, SAMPLE_RATE_HZ // 2)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(2))
    waves = {"silence": 0 * target, "same": target, "noise": 0.1 * noise, "faint": 1e-6 * noise}
    wave = waves[made].clone().requires_grad_()
    distance = phase_distance(wave, target)
    distance.backward()
    assert wave.grad is not None
    assert torch.isfinite(wave.grad).all()
    assert 0 <= float(distance.detach()) <= 2


def test_phases_are_learnt(phases: torch.Tensor) -> None:
    wanted = voice(phases)
    learnt = phases.flip(0).clone().requires_grad_()
    optimizer = torch.optim.Adam([learnt], lr=0.1)
    found = []
    for _ in range(60):
        optimizer.zero_grad()
        distance = phase_distance(voice(learnt), wanted)
        distance.backward()
        optimizer.step()
        found.append(float(distance.detach()))
    assert found[-1] < 0.2 * found[0]
