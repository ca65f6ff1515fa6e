"""Many sentences spoken at once, to judge a voice in seconds; the reference takes one at a time.

Same networks, same rows, so that the likeliest codes are those of the reference and the server.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicCache

from training.layout import ABSENT, PromptIds, lay_out
from training.talker import TalkerModel
from training.text import Splitter

_LEAST_FRAMES = 2


@dataclass(frozen=True)
class Manner:
    """How to speak: text all at once or with the frames, the likeliest codes or drawn ones.

    temperature 0 takes the likeliest.
    """

    streaming: bool = False
    temperature: float = 0.0
    top_k: int = 30
    seed: int = 0
    max_frames: int = 400


@dataclass(frozen=True)
class _Prompts:
    """B prompts of P positions, short ones filled up in front, and the text that follows.

    text int64 [B, P + frames], codes int64 [B, P, groups], seen bool [B, P].
    """

    text: Tensor
    codes: Tensor
    seen: Tensor


class Chorus:
    """Speaks with a trained model."""

    def __init__(self, model: TalkerModel, ids: PromptIds, splitter: Splitter) -> None:
        self.model, self.ids, self.splitter = model.eval(), ids, splitter
        self.device = model.talker.model.text_embedding.weight.device

    def _prompts(self, items: Sequence[tuple[str, str]], manner: Manner) -> _Prompts:
        laid = []
        for text, voice in items:
            frames = np.zeros((manner.max_frames, self.model.num_groups), np.int64)
            tokens = self.splitter.exact.encode(text)
            laid.append(
                lay_out(self.ids, tokens, frames, voice, streaming=manner.streaming, language=True)
            )
        lengths = [len(rows.text) - manner.max_frames for rows in laid]
        longest = max(lengths)
        shape = (len(laid), longest)
        text = np.full((len(laid), longest + manner.max_frames), ABSENT, np.int64)
        codes = np.full((*shape, self.model.num_groups), ABSENT, np.int64)
        seen = np.zeros(shape, bool)
        for i, (rows, length) in enumerate(zip(laid, lengths, strict=True)):
            text[i, longest - length :] = rows.text
            codes[i, longest - length :] = rows.codes[:length]
            seen[i, longest - length :] = True
        return _Prompts(*(torch.from_numpy(part).to(self.device) for part in (text, codes, seen)))

    @torch.inference_mode()
    def speak(self, items: Sequence[tuple[str, str]], manner: Manner) -> list[Tensor]:
        """Return codes int64 [groups, T] of each text by each voice; T is at most `max_frames`."""
        generator = torch.Generator(self.device).manual_seed(manner.seed)
        prompts, model = self._prompts(items, manner), self.model
        start = prompts.seen.shape[1]
        cache, seen = DynamicCache(), prompts.seen
        place = torch.arange(start, device=self.device)
        # A position that was filled in sees itself, since nothing at all would be no number.
        mask = seen[:, None] & (place[None, :] <= place[:, None])
        mask = (mask | torch.eye(start, dtype=torch.bool, device=self.device))[:, None]
        rows = model.embed(prompts.text[:, :start], prompts.codes)
        ended = torch.zeros(len(items), dtype=torch.bool, device=self.device)
        lengths = torch.full((len(items),), manner.max_frames, device=self.device)
        frames: list[Tensor] = []
        for step in range(manner.max_frames):
            hidden = self._talker(rows, mask, cache)[:, -1]
            first = self._first(hidden, step, manner, generator)
            ends = (first == model.eos) & ~ended
            lengths = torch.where(ends, step, lengths)
            ended = ended | ends
            if ended.all():
                break
            codes = self._frame(hidden, first.clamp(max=model.num_codes - 1), manner, generator)
            frames.append(codes)
            at = start + step
            rows = model.embed(prompts.text[:, at : at + 1], codes[:, None])
            seen = F.pad(seen, (0, 1), value=True)
            mask = seen[:, None, None]
        spoken = torch.stack(frames, dim=2) if frames else torch.empty(len(items), 1, 0)
        return [row[:, :length] for row, length in zip(spoken, lengths.tolist(), strict=True)]

    def _talker(self, rows: Tensor, mask: Tensor, cache: Any) -> Tensor:
        stack = self.model.talker.model
        begin = cache.get_seq_length()
        place = torch.arange(begin, begin + rows.shape[1], device=rows.device)[None]
        tables = stack.rotary_emb(rows, place[None].expand(3, 1, -1))
        for layer in stack.layers:
            rows = layer(
                rows, attention_mask=mask, position_embeddings=tables, past_key_values=cache
            )[0]
        return stack.norm(rows)

    def _first(
        self, hidden: Tensor, step: int, manner: Manner, generator: torch.Generator
    ) -> Tensor:
        model = self.model
        scores = model.talker.codec_head(hidden).float()
        end = scores[:, model.eos].clone()
        scores[:, model.num_codes :] = -torch.inf
        if step >= _LEAST_FRAMES:
            scores[:, model.eos] = end
        return _draw(scores, manner, generator)

    def _frame(
        self, hidden: Tensor, first: Tensor, manner: Manner, generator: torch.Generator
    ) -> Tensor:
        """Codes int64 [B, groups] of a frame."""
        predictor, cache = self.model.talker.code_predictor, DynamicCache()
        embedding = self.model.talker.model.codec_embedding
        rows = torch.stack((hidden, embedding(first)), dim=1)
        codes = [first]
        for group in range(self.model.num_groups - 1):
            rows = predictor.small_to_mtp_projection(rows)
            begin = cache.get_seq_length()
            place = torch.arange(begin, begin + rows.shape[1], device=rows.device)[None]
            tables = predictor.model.rotary_emb(rows, place)
            for layer in predictor.model.layers:
                rows = layer(
                    rows, attention_mask=None, position_embeddings=tables, past_key_values=cache
                )[0]
            scores = predictor.lm_head[group](predictor.model.norm(rows)[:, -1]).float()
            codes.append(_draw(scores, manner, generator))
            rows = predictor.model.codec_embedding[group](codes[-1])[:, None]
        return torch.stack(codes, dim=1)


def _draw(scores: Tensor, manner: Manner, generator: torch.Generator) -> Tensor:
    """One id of each row of scores [B, ids]."""
    if manner.temperature == 0:
        return scores.argmax(-1)
    best, ids = scores.topk(min(manner.top_k, scores.shape[-1]))
    drawn = torch.multinomial((best / manner.temperature).softmax(-1), 1, generator=generator)
    return ids.gather(1, drawn)[:, 0]
