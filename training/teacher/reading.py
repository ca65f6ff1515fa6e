"""What the teacher makes of phonemes before anything sounds: durations, melody and loudness."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.teacher.layers import AdaptiveBlock, AdaptiveNorm, Convolution, Recurrent, Valid
from training.teacher.shape import TeacherShape


class _Attention(nn.Module):
    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.query, self.key, self.value, self.dense = (
            nn.Linear(shape.width, shape.width) for _ in range(4)
        )
        self.LayerNorm = nn.LayerNorm(shape.width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        heard = F.scaled_dot_product_attention(query, key, value, mask)
        return self.LayerNorm(x + self.dense(heard.transpose(1, 2).flatten(2)))


class _Layer(nn.Module):
    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.attention = _Attention(shape)
        self.ffn = nn.Linear(shape.width, shape.inner)
        self.ffn_output = nn.Linear(shape.inner, shape.width)
        self.full_layer_layer_norm = nn.LayerNorm(shape.width, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention(x, mask)
        made = self.ffn_output(F.gelu(self.ffn(x), approximate="tanh"))
        return self.full_layer_layer_norm(x + made)


class Albert(nn.Module):
    """A transformer that applies one layer many times."""

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.repeats = shape.layers
        self.word_embeddings = nn.Embedding(shape.symbols, shape.embedding)
        self.position_embeddings = nn.Embedding(shape.positions, shape.embedding)
        self.token_type_embeddings = nn.Embedding(2, shape.embedding)
        self.LayerNorm = nn.LayerNorm(shape.embedding, eps=1e-12)
        self.embedding_hidden_mapping_in = nn.Linear(shape.embedding, shape.width)
        self.layer = _Layer(shape)

    def forward(self, tokens: Tensor, valid: Valid) -> Tensor:
        """Take int64 [B, T]; return [B, T, width], padding undefined."""
        x = self.word_embeddings(tokens) + self.token_type_embeddings.weight[0]
        x = self.LayerNorm(x + self.position_embeddings.weight[: tokens.shape[1]])
        x = self.embedding_hidden_mapping_in(x)
        mask = valid.mask.view(len(tokens), 1, 1, -1)
        for _ in range(self.repeats):
            x = self.layer(x, mask)
        return x


class TextEncoder(nn.Module):
    """Convolutions and an LSTM over phonemes."""

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        hidden = shape.hidden
        self.embedding = nn.Embedding(shape.symbols, hidden)
        self.cnn = nn.ModuleList(
            nn.ModuleList([Convolution(hidden, hidden, 5, padding=2), nn.LayerNorm(hidden)])
            for _ in range(3)
        )
        self.lstm = Recurrent(hidden, hidden)

    def forward(self, tokens: Tensor, valid: Valid) -> Tensor:
        """Take int64 [B, T]; return [B, T, hidden], zero in the padding."""
        x = self.embedding(tokens)
        for convolution, norm in self.cnn:  # pyright: ignore[reportGeneralTypeIssues]
            x = F.leaky_relu(norm(convolution(valid.clean(x))), 0.2)
        return self.lstm.over(x, valid)


class _StyledNorm(AdaptiveNorm):
    """Norm of each step over its channels, to what the style asks for."""

    def forward(self, x: Tensor, style: Tensor, valid: Valid) -> Tensor:
        gain, offset = self.asked(style)
        return gain.unsqueeze(1) * F.layer_norm(x, x.shape[-1:]) + offset.unsqueeze(1)


class _StyledEncoder(nn.Module):
    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        self.lstms = nn.ModuleList()
        for _ in range(3):
            self.lstms.append(Recurrent(shape.hidden + shape.style, shape.hidden))
            self.lstms.append(_StyledNorm(shape.hidden, shape.style))


class Predictor(nn.Module):
    """Durations, melody (F0) and loudness (N) from meaning and style."""

    def __init__(self, shape: TeacherShape) -> None:
        super().__init__()
        hidden, style = shape.hidden, shape.style
        self.text_encoder = _StyledEncoder(shape)
        self.lstm = Recurrent(hidden + style, hidden)
        self.duration_proj = nn.Linear(hidden, shape.durations)
        self.shared = Recurrent(hidden + style, hidden)

        def curve() -> nn.ModuleList:
            return nn.ModuleList(
                [
                    AdaptiveBlock(hidden, hidden, style),
                    AdaptiveBlock(hidden, hidden // 2, style, doubles=True),
                    AdaptiveBlock(hidden // 2, hidden // 2, style),
                ]
            )

        self.F0, self.N = curve(), curve()
        self.F0_proj, self.N_proj = (Convolution(hidden // 2, 1, 1) for _ in range(2))

    def durations(self, meaning: Tensor, style: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
        """Return the prosody [B, T, hidden + style] and steps int64 [B, T] of each phoneme."""
        styles = style.unsqueeze(1).expand(-1, valid.size, -1)
        x = torch.cat([meaning, styles], dim=-1)
        for lstm, norm in zip(
            self.text_encoder.lstms[::2], self.text_encoder.lstms[1::2], strict=True
        ):
            assert isinstance(lstm, Recurrent)
            x = torch.cat([norm(lstm.over(x, valid), style, valid), styles], dim=-1)
        likely = self.duration_proj(self.lstm.over(x, valid)).sigmoid()
        return x, likely.sum(-1).round().clamp(min=1).long()

    def curves(self, prosody: Tensor, style: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
        """Take prosody by steps [B, T, ...]; return F0 and N [B, 2 T, 1], zero in the padding."""
        x = self.shared.over(prosody, valid)
        return (
            self._curve(self.F0, self.F0_proj, x, style, valid),
            self._curve(self.N, self.N_proj, x, style, valid),
        )

    def _curve(
        self,
        blocks: Sequence[nn.Module] | nn.ModuleList,
        last: nn.Module,
        x: Tensor,
        style: Tensor,
        valid: Valid,
    ) -> Tensor:
        for block in blocks:
            x, valid = block(x, style, valid)
        return valid.clean(last(x))
