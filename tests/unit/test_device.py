"""Graphs and devices, without CUDA."""

import pytest
import torch
from torch import Tensor

from serve_app.errors import StageUnavailable
from serve_app.models.cuda_graph import BatchGraphs
from serve_app.models.device import resolve_device


def test_disabled_graphs_call_the_function_with_the_exact_batch() -> None:
    seen: list[int] = []

    def double(x: Tensor) -> Tensor:
        seen.append(x.shape[0])
        return x * 2

    graphs = BatchGraphs(lambda rows: (torch.zeros(rows, 3),), double, [1, 4], enabled=False)
    graphs.capture_all()
    assert graphs(torch.ones(3, 3)).tolist() == [[2.0] * 3] * 3
    assert seen == [3]
    assert graphs.pick(2) == 4
    with pytest.raises(ValueError, match="do not fit"):
        graphs(torch.ones(5, 3))
    with pytest.raises(ValueError, match="input 0"):
        graphs(torch.ones(1, 2))
    with pytest.raises(ValueError, match="2 inputs"):
        graphs(torch.ones(1, 3), torch.ones(1, 3))
    graphs.close()
    with pytest.raises(RuntimeError, match="closed"):
        graphs(torch.ones(1, 3))


def test_the_device_is_resolved_with_its_reason() -> None:
    cpu = resolve_device("cpu", "bfloat16")
    assert cpu.device.type == "cpu"
    assert cpu.dtype is torch.bfloat16
    assert "bfloat16" in cpu.reason
    assert resolve_device("cpu", "auto").dtype is torch.float32


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_absent_is_refused_at_start() -> None:
    with pytest.raises(StageUnavailable, match="no CUDA device"):
        resolve_device("cuda", "auto")
    assert resolve_device("auto", "auto").device.type == "cpu"


def test_words_that_are_no_choice_are_refused() -> None:
    with pytest.raises(ValueError, match="device"):
        resolve_device("tpu", "auto")
    with pytest.raises(ValueError, match="dtype"):
        resolve_device("cpu", "float16")
