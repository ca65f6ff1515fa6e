"""Codebooks that learn."""

import torch

from training.quantizer import LearnedCodebooks


def _clusters(count: int) -> torch.Tensor:
    """Vectors around four points: [count, 2]."""
    points = torch.tensor([[5.0, 5.0], [-5.0, 5.0], [5.0, -5.0], [-5.0, -5.0]])
    which = torch.arange(count) % 4
    return points[which] + 0.1 * torch.randn(count, 2)


def test_entries_start_on_what_they_are_shown_and_follow_it() -> None:
    torch.manual_seed(0)
    books = LearnedCodebooks(num_books=2, num_codes=8, dim=2)
    books.start(_clusters(400), _clusters(400))
    vectors = _clusters(120).view(4, 30, 2).transpose(1, 2)
    for _ in range(50):
        semantic, acoustic, codes, commitment = books(vectors, vectors, learn=True)
    assert codes.shape == (4, 2, 30)
    assert float(commitment) < 0.2
    assert float((semantic - vectors).abs().mean()) < 0.3
    assert float((acoustic - vectors).abs().mean()) < 0.3


def test_nothing_changes_without_learning_and_gradients_pass() -> None:
    torch.manual_seed(0)
    books = LearnedCodebooks(num_books=3, num_codes=8, dim=2)
    before = books.entries.clone()
    vectors = torch.randn(2, 2, 5, requires_grad=True)
    semantic, acoustic, _, _ = books(vectors, vectors, learn=False)
    (semantic.sum() + acoustic.sum()).backward()
    assert torch.equal(books.entries, before)
    assert vectors.grad is not None
    assert torch.allclose(vectors.grad, torch.full_like(vectors, 2.0))


def test_an_unused_entry_stays_until_it_is_revived_where_a_team_trains() -> None:
    torch.manual_seed(0)
    books = LearnedCodebooks(num_books=2, num_codes=8, dim=2)
    books.start(_clusters(400), _clusters(400))
    far = torch.tensor([100.0, 100.0])
    books.total[1, 3], books.usage[1, 3] = far, 1.0
    books.moves = False
    vectors = _clusters(120).view(4, 30, 2).transpose(1, 2)
    for _ in range(500):
        books(vectors, vectors, learn=True)
    assert torch.allclose(books.entries[1, 3], far)
    others = books.entries[1, :3].clone()
    books.revive()
    assert books.entries[1, 3].abs().max() < 10
    assert torch.equal(books.picked[1, 3], books.entries[1, 3])
    used = books.usage[1, :3] != 1.0
    assert torch.equal(books.entries[1, :3][used], others[used])
