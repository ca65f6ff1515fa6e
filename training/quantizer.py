"""Vector quantisation that learns; the reference package's can only look up.

One codebook is a running mean: each entry follows the vectors that chose it, and an entry that
nobody chooses is moved onto a vector of the batch. The first book (semantic) and the residual chain
of the others (acoustic) read separate projections of the same latent, as the checkpoint format has
it.
"""

from typing import Final

import torch
from torch import Tensor, nn

_ROUNDS: Final = 8


class LearnedCodebooks(nn.Module):
    """All codebooks of a speech tokenizer.

    Args:
        num_books: the semantic one and the acoustic ones.
        num_codes: entries of each.
        dim: width of an entry.
        decay: of the running means, per step.
        revive_below: an entry chosen less often than this per step, in the running mean, is moved.

    Attributes:
        moves: whether `forward` moves unused entries by itself. In a team it must not: the mean of
            what several have moved to different places is a place where no vector is. `revive`
            does it then, for one of them, and the others take what it has.
    """

    usage: Tensor
    total: Tensor
    started: Tensor
    picked: Tensor

    def __init__(
        self,
        num_books: int,
        num_codes: int,
        dim: int,
        decay: float = 0.99,
        revive_below: float = 0.02,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.revive_below = revive_below
        self.moves = True
        self.register_buffer("usage", torch.ones(num_books, num_codes))
        self.register_buffer("total", torch.randn(num_books, num_codes, dim) * 0.1)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        # Vectors of the last batch, at random, where an unused entry may be moved to.
        self.register_buffer("picked", torch.zeros(num_books, num_codes, dim), persistent=False)

    @property
    def entries(self) -> Tensor:
        """The codebooks: float32 [books, codes, dim]."""
        return self.total / self.usage.clamp(min=1e-5)[..., None]

    def nearest(self, book: int, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes int64 [N] and entries [N, dim] nearest to `vectors` [N, dim]."""
        entries = self.total[book] / self.usage[book].clamp(min=1e-5)[:, None]
        distance = entries.pow(2).sum(-1) - 2 * vectors @ entries.T
        codes = distance.argmin(-1)
        return codes, entries[codes]

    @torch.no_grad()
    def _learn(self, book: int, vectors: Tensor, codes: Tensor) -> None:
        usage, total = self.usage[book], self.total[book]
        counts = torch.zeros_like(usage).index_add_(
            0, codes, torch.ones_like(codes, dtype=usage.dtype)
        )
        sums = torch.zeros_like(total).index_add_(0, codes, vectors)
        usage.lerp_(counts, 1 - self.decay)
        total.lerp_(sums, 1 - self.decay)
        at_random = torch.randint(len(vectors), (len(usage),), device=vectors.device)
        self.picked[book].copy_(vectors[at_random])
        if self.moves:
            self._move(usage, total, self.picked[book])

    def _move(self, usage: Tensor, total: Tensor, picked: Tensor) -> None:
        unused = usage < self.revive_below
        usage.copy_(torch.where(unused, 1.0, usage))
        total.copy_(torch.where(unused[..., None], picked, total))

    @torch.no_grad()
    def revive(self) -> None:
        """Move the unused entries of all books onto vectors of the last batch."""
        self._move(self.usage, self.total, self.picked)

    @torch.no_grad()
    def start(self, semantic: Tensor, acoustic: Tensor) -> None:
        """Put the entries where vectors [N, dim] of both projections are, level by level."""
        rest = acoustic
        size = self.usage.shape[1]
        for book in range(len(self.usage)):
            vectors = semantic if book == 0 else rest
            means = vectors[torch.randint(len(vectors), (size,), device=vectors.device)]
            self.usage[book].fill_(1.0)
            for _ in range(_ROUNDS):
                self.total[book].copy_(means)
                codes, _ = self.nearest(book, vectors)
                counts = torch.bincount(codes, minlength=size)
                sums = torch.zeros_like(means).index_add_(0, codes, vectors)
                means = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], means)
            if book > 0:
                rest = rest - self.nearest(book, rest)[1]
        self.started.fill_(True)

    def forward(
        self, semantic: Tensor, acoustic: Tensor, learn: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Quantise both projections of a latent, gradients passing straight through.

        Both are float32 [B, dim, T]. If `learn`, the codebooks follow them.

        Returns:
            The quantised two, [B, dim, T] each; codes int64 [B, books, T]; how far the vectors lie
            from their entries (the commitment loss).
        """
        shape = semantic.shape
        flat = [x.float().transpose(1, 2).reshape(-1, shape[1]) for x in (semantic, acoustic)]
        codes_0, first = self.nearest(0, flat[0].detach())
        if learn:
            self._learn(0, flat[0].detach(), codes_0)
        codes, rest, chosen = [codes_0], flat[1].detach(), torch.zeros_like(flat[1])
        commitment = (flat[0] - first).pow(2).mean()
        for book in range(1, len(self.usage)):
            code, entry = self.nearest(book, rest)
            if learn:
                self._learn(book, rest, code)
            rest, chosen = rest - entry, chosen + entry
            codes.append(code)
        commitment = commitment + (flat[1] - chosen).pow(2).mean()

        def through(vectors: Tensor, quantised: Tensor) -> Tensor:
            passed = vectors + (quantised - vectors).detach()
            return passed.reshape(shape[0], shape[2], shape[1]).transpose(1, 2)

        stacked = torch.stack(codes).reshape(-1, shape[0], shape[2]).transpose(0, 1)
        return through(flat[0], first), through(flat[1], chosen), stacked, commitment
