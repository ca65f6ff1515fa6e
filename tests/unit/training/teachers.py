"""A teacher of a few thousand weights, for tests."""

import torch

from training.teacher import Kokoro, TeacherShape

TINY = TeacherShape(
    symbols=24,
    positions=32,
    embedding=8,
    width=16,
    heads=2,
    inner=32,
    layers=2,
    hidden=16,
    style=8,
    durations=4,
    decoder=32,
    residual=4,
    channels=(16, 8),
    kernels=(3, 7),
    harmonics=3,
)


def tiny_teacher() -> Kokoro:
    """Return one that babbles, always the same."""
    torch.manual_seed(3)
    network = Kokoro(TINY).eval().requires_grad_(False)
    # Its logarithms of sizes would be those of an explosion, and its melody too low to be heard.
    # So high a one fills the spectrum; the angle of what is faint turns with the last bit.
    network.decoder.generator.conv_post.weight.mul_(0.1)
    bias = network.predictor.F0_proj.bias
    assert bias is not None
    bias.fill_(2900.0)
    return network
