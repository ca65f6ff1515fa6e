"""What graphs do without a GPU: garbage is left alone while one is captured."""

import gc

import pytest
import torch

from serve_app.models.cuda_graph import BatchGraphs, without_collections


def test_no_garbage_is_collected_meanwhile_and_again_after_a_failure() -> None:
    def fail() -> None:
        with without_collections():
            assert not gc.isenabled()
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fail()
    assert gc.isenabled()


def test_captures_that_overlap_leave_collections_on() -> None:
    first, second = without_collections(), without_collections()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_closed_graphs_are_not_called() -> None:
    graphs = BatchGraphs(lambda rows: (torch.zeros(rows),), torch.neg, (1, 2), enabled=False)
    assert graphs(torch.ones(2)).tolist() == [-1, -1]
    graphs.close()
    graphs.close()
    with pytest.raises(RuntimeError, match="closed"):
        graphs(torch.ones(2))
