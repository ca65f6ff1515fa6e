"""Which of cuDNN's algorithms the decoder's convolutions use: what it expects to be fast, or is.

PyTorch keeps the choice for each shape and thread, so that what was tried once is not tried again
when the same step is captured.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Trials:
    """What is tried before a step is captured; nothing by default.

    Attributes:
        algorithms: of each convolution, those first that cuDNN expects to be fast.
        from_frames: only in steps of at least so many frames, those of all streams together.
            Smaller ones make little of the audio where there are many streams.
    """

    algorithms: int = 0
    from_frames: int = 1

    def include(self, num_frames: int) -> bool:
        """Whether algorithms are tried for a step of so many frames."""
        return self.algorithms > 0 and num_frames >= self.from_frames


@contextmanager
def trying(algorithms: int) -> Iterator[None]:
    """Let convolutions whose shape is new to this thread try so many algorithms; CUDA only.

    In the whole process: nobody else may compute meanwhile. The device is waited for again and
    again, and slow algorithms keep it busy.
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.benchmark_limit, _gives_back()
    cudnn.benchmark, cudnn.benchmark_limit = True, algorithms
    _give_back(False)
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.benchmark_limit = before[:2]
        _give_back(before[2])
        # Workspaces of what was tried.
        torch.cuda.empty_cache()


def _gives_back() -> bool:
    """Whether PyTorch gives all memory that is free back to the driver behind each convolution.

    By default it does, and asks for it again for the next one.
    """
    return torch._C._cuda_get_conv_benchmark_empty_cache()


def _give_back(enabled: bool) -> None:
    torch._C._cudnn_set_conv_benchmark_empty_cache(enabled)
