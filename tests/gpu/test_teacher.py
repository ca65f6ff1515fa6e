"""The teacher on a GPU."""

import torch

from training.teacher.activation import compare


def test_the_kernels_give_what_pytorch_gives() -> None:
    compare(torch.device("cuda"))
