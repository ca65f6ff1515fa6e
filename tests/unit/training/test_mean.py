"""The running mean of weights."""

import torch
from torch import nn

from training.mean import RunningMean


def _with(value: float) -> nn.Linear:
    module = nn.Linear(1, 1)
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def test_the_mean_lies_between_what_was_and_what_is_and_is_lent_for_a_while() -> None:
    module = _with(0.0)
    mean = RunningMean(module, steps=4, every=1)
    nn.init.constant_(module.weight, 1.0)
    for step in range(100, 104):
        mean.follow(step)
    expected = 1 - 0.75**4
    with mean.in_place():
        torch.testing.assert_close(module.weight.item(), expected)
    assert module.weight.item() == 1.0
    torch.testing.assert_close(mean.state()["weight"].item(), expected)


def test_a_mean_goes_on_where_it_was() -> None:
    first = RunningMean(_with(2.0), steps=10)
    second = RunningMean(_with(0.0), steps=10)
    second.set_state(first.state())
    assert second.state()["bias"].item() == 2.0


def test_steps_between_two_looks_change_nothing() -> None:
    module = _with(0.0)
    mean = RunningMean(module, steps=100, every=10)
    nn.init.constant_(module.weight, 1.0)
    mean.follow(13)
    assert mean.state()["weight"].item() == 0.0
