"""Talker and code predictor, taught on the corpus's codes with the right history given."""

import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import LENGTHS, Batch, Batches, BatchOptions
from training.codes import CodeBook
from training.corpus import NUM_LABELS, SLOTS
from training.layout import ABSENT, PromptIds
from training.mean import RunningMean
from training.progress import Clock, Log
from training.reference import load_reference
from training.replay import Replayed, capturable_adamw, moments, set_moments, set_rate
from training.stacks import predictor_stack, talker_stack
from training.team import Team
from training.text import Splitter

_SAVE_EVERY_S: Final = 60.0
_FAR_SEED: Final = 1_000_003


@dataclass(frozen=True)
class TalkerTraining:
    """How the talker is taught.

    frame_dropout, group_noise: shares of the frames whose codes are hidden from the talker, and of
    single codes replaced by random ones: what it says must come from the text, and it must bear its
    own mistakes. coarse_history: share of the sentences whose acoustic codes are all hidden, as
    they are where the teacher did not speak. layer_dropout: of what each layer adds. mean_steps:
    how far back the running mean of the weights reaches, which is what is evaluated and exported.
    best_from: share of the time from which on the best mean is looked for. A talker that goes on
        begins with a loss that it only comes back to once the rate is low.
    dropout_until: share of the time up to which dropout and layer_dropout hold. A model as small as
        this one must in the end use all that it has; a disturbed history stays.
    """

    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    dropout: float = 0.1
    layer_dropout: float = 0.05
    frame_dropout: float = 0.15
    group_noise: float = 0.05
    coarse_history: float = 0.1
    predictor_weight: float = 1.0
    phoneme_weight: float = 0.5
    imagined_weight: float = 0.5
    merge_dropout: float = 0.1
    mean_steps: float = 1000.0
    best_from: float = 0.5
    dropout_until: float = 0.65
    seed: int = 1


class TalkerModel(nn.Module):
    """The reference's talker with its code predictor, and a head for phonemes that stays behind."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        _, model = load_reference()
        full = model.Qwen3TTSConfig(**config)
        talker_config = full.talker_config
        talker_config._attn_implementation = "sdpa"
        talker_config.code_predictor_config._attn_implementation = "sdpa"
        self.talker: Any = model.Qwen3TTSTalkerForConditionalGeneration(talker_config)
        self.phonemes = nn.Linear(talker_config.hidden_size, SLOTS * NUM_LABELS)
        self.num_groups = int(talker_config.num_code_groups)
        self.num_codes = int(talker_config.code_predictor_config.vocab_size)
        self.eos = int(talker_config.codec_eos_token_id)

    def embed(self, text: Tensor, codes: Tensor) -> Tensor:
        """Sum of the rows of each position, [B, L, H]; see `Batch`."""
        talker = self.talker
        # Absent text must add nothing, and a projection of nothing is not nothing: it has biases.
        rows = talker.text_projection(_look_up(talker.model.text_embedding.weight, text))
        rows = rows * (text >= 0)[..., None]
        rows = rows + _look_up(talker.model.codec_embedding.weight, codes[..., 0])
        tables = torch.stack([t.weight for t in talker.code_predictor.model.codec_embedding])
        marks = _marks(codes[..., 1:], self.num_codes, tables.dtype)
        return rows + marks.flatten(-2) @ tables.flatten(0, 1)

    def hidden(self, rows: Tensor, dropout: float = 0.0) -> Tensor:
        """States after the final norm, [B, L, H]; padding lies behind and is never looked at."""
        return talker_stack(self.talker.model, rows, dropout)

    def fill(self, hidden: Tensor, codes: Tensor, dropout: float = 0.0) -> Tensor:
        """Scores of groups 1 to Q - 1, [N, Q - 1, codes], each given the codes [N, Q] before it."""
        predictor = self.talker.code_predictor
        tables = torch.stack([t.weight for t in predictor.model.codec_embedding[:-1]])
        marks = _marks(codes[:, 1:-1], self.num_codes, tables.dtype)
        before = [
            hidden[:, None],
            _look_up(self.talker.model.codec_embedding.weight, codes[:, :1]),
            torch.einsum("ngc,gch->ngh", marks, tables),
        ]
        rows = predictor.small_to_mtp_projection(torch.cat(before, dim=1))
        states = predictor_stack(predictor.model, rows, dropout)
        heads = torch.stack([head.weight for head in predictor.lm_head])
        return torch.einsum("ngh,gch->ngc", states[:, 1:], heads)


def _marks(ids: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """1 at each id, nothing where it is -1: [..., size]."""
    return (ids[..., None] == torch.arange(size, device=ids.device)).to(dtype)


def _look_up(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a small table, zero where the id is -1.

    A product with marks: its gradient is one too, where that of an index is a slow scatter.
    """
    return _marks(ids, len(table), table.dtype) @ table


class TalkerTrainer:
    """One run of training, resumable from `file`; with others of a `Team`, in step with them."""

    def __init__(
        self,
        file: Path,
        folder: Path,
        config: dict[str, Any],
        training: TalkerTraining,
        device: torch.device,
        options: BatchOptions | None = None,
    ) -> None:
        self.options = options or BatchOptions()
        self.file, self.training, self.device = file, training, device
        self.team = Team()
        torch.manual_seed(training.seed)
        self.model = TalkerModel(config).to(device)
        self.splitter = Splitter(folder, training.merge_dropout)
        self.ids = PromptIds.from_config(config, self.splitter.newline)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = capturable_adamw(groups, device, training.learning_rate, betas=(0.9, 0.95))
        self.steps, self.spent = 0, 0.0
        self._drops = True
        stored = torch.load(file, map_location=device, weights_only=True) if file.exists() else {}
        if stored:
            self.model.load_state_dict(stored["model"])
            self.steps, self.spent = stored["steps"], stored["spent"]
            set_moments(self.optimizer, stored["moments"], device)
        self.mean = RunningMean(self.model, training.mean_steps)
        if "mean" in stored:
            self.mean.set_state(stored["mean"])
        self.best: dict[str, Tensor] = stored.get("best", {})
        self.best_loss = float(stored.get("best_loss", "inf"))

    def save(self) -> None:
        """Write everything that a later call goes on from."""
        part = self.file.with_suffix(".part")
        state = {
            "model": self.model.state_dict(),
            "mean": self.mean.state(),
            "best": self.best,
            "best_loss": self.best_loss,
            "steps": self.steps,
            "spent": self.spent,
            "moments": moments(self.optimizer),
        }
        torch.save(state, part)
        part.rename(self.file)

    def losses(self, batch: Batch, *, noisy: bool) -> dict[str, Tensor]:
        """Cross entropies of a batch, and shares of right guesses."""
        training, model = self.training, self.model
        codes = self._disturbed(batch) if noisy else batch.codes
        rows = model.embed(batch.text, codes)
        is_whole = not (noisy and self._drops)
        if not is_whole:
            rows = F.dropout(rows, training.dropout)
        dropout = 0.0 if is_whole else training.layer_dropout
        hidden = model.hidden(rows, dropout)
        scores = model.talker.codec_head(hidden).float()
        leads = batch.target >= 0
        wrong = F.cross_entropy(
            scores.flatten(0, 1), batch.target.flatten(), ignore_index=ABSENT, reduction="none"
        ).view(leads.shape)
        # What was not spoken has a guessed rhythm: it counts less.
        weight = torch.where(batch.spoken, 1.0, training.imagined_weight)[:, None] * leads
        guessed = model.phonemes(hidden).view(*leads.shape, SLOTS, NUM_LABELS).float()
        phoneme = F.cross_entropy(
            guessed.flatten(0, 2), batch.next_labels.flatten(), ignore_index=ABSENT
        )
        following = batch.next_codes.flatten(0, 1)[batch.chosen]
        filled = model.fill(hidden.flatten(0, 1)[batch.chosen], following, dropout).float()
        groups = F.cross_entropy(
            filled.flatten(0, 1), following[:, 1:].flatten(), reduction="none"
        ).view(len(following), -1)
        is_label, is_end = batch.next_labels >= 0, batch.target == model.eos
        return {
            "first": (wrong * weight).sum() / weight.sum(),
            "rest": groups.mean(),
            "phoneme": phoneme,
            "second": groups[:, 0].mean(),
            "last": groups[:, -1].mean(),
            "first_right": _share(scores.argmax(-1) == batch.target, leads),
            "phonemes_right": _share(guessed.argmax(-1) == batch.next_labels, is_label),
            "end": (wrong * is_end).sum() / is_end.sum().clamp(min=1),
        }

    def _step(self, *tensors: Tensor) -> dict[str, Tensor]:
        """Learn from one batch, given as the fields of `Batch`."""
        training = self.training
        on_gpu = self.device.type == "cuda"
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            losses = self.losses(Batch(*tensors), noisy=True)
            loss = losses["first"] + training.predictor_weight * losses["rest"]
            loss = loss + training.phoneme_weight * losses["phoneme"]
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return {name: value.detach() for name, value in losses.items()}

    def _disturbed(self, batch: Batch) -> Tensor:
        """Hide and replace some of the history; control ids stay."""
        training, codes = self.training, batch.codes
        is_frame = codes[..., 1:2] >= 0
        shape = codes.shape

        def share(of: float, *size: int) -> Tensor:
            return torch.rand(size, device=codes.device) < of

        random = torch.randint(self.model.num_codes, shape, device=codes.device)
        codes = torch.where(is_frame & share(training.group_noise, *shape), random, codes)
        coarse = share(training.coarse_history, shape[0], 1, 1) | ~batch.spoken[:, None, None]
        coarse = coarse & (torch.arange(shape[2], device=codes.device) > 0)
        hidden = share(training.frame_dropout, shape[0], shape[1], 1) | coarse
        return torch.where(is_frame & hidden, -1, codes)

    def run(self, book: CodeBook, total_s: float, limit_s: float, log: Log) -> None:
        """Teach until the clock says stop."""
        training, device = self.training, self.device
        clock = Clock(total_s, limit_s, self.spent)
        indices = np.arange(len(book))
        held_out = book.is_held_out & book.spoken
        seed = training.seed + self.steps + _FAR_SEED * self.team.rank
        torch.manual_seed(seed)
        drawn = Batches(book, indices[~held_out], self.ids, self.splitter, self.options, seed)
        small = replace(self.options, positions=LENGTHS[-1] * 4, varied_split=0.0)
        unseen = Batches(book, indices[held_out], self.ids, self.splitter, small, seed=0)
        fixed = [b.to(device) for b in islice(unseen, 8)] if held_out.any() else []
        steps = {length: Replayed(self._step, device) for length in LENGTHS}
        self.model.train()
        saved, began, first_step = time.monotonic(), time.monotonic(), self.steps
        for batch in drawn.loader():
            is_over = clock.is_over
            if self.team.meets(self.steps):
                self.team.average(self.model.parameters())
                is_over = self.team.any(is_over)
            if is_over and (self.team.size == 1 or self.team.meets(self.steps)):
                break
            set_rate(self.optimizer, clock.rate(training.learning_rate))
            if self._drops and clock.progress >= training.dropout_until:
                self._drops = False
                steps = {length: Replayed(self._step, device) for length in LENGTHS}
            found = steps[batch.text.shape[1]](*batch.to(device).tensors)
            self.steps += 1
            self.mean.follow(self.steps)
            if not self.team.leads:
                continue
            if log.is_due:
                a_second = (self.steps - first_step) / (time.monotonic() - began)
                may_keep = clock.progress >= training.best_from
                numbers = found | self._unseen(fixed, may_keep=may_keep)
                log.write(
                    step=self.steps,
                    seconds=clock.used_s,
                    steps_a_second=a_second,
                    positions=batch.text.shape[1],
                    **numbers,
                )
            if time.monotonic() - saved > _SAVE_EVERY_S:
                self.spent, saved = clock.used_s, time.monotonic()
                self.save()
        self.spent = clock.used_s

    @torch.no_grad()
    def _unseen(self, batches: list[Batch], *, may_keep: bool) -> dict[str, Tensor]:
        """Losses of the running mean on sentences that no step sees; keep it if it is the best."""
        if not batches:
            return {}
        self.model.eval()
        on_gpu = self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu), self.mean.in_place():
            found = [self.losses(batch, noisy=False) for batch in batches]
        self.model.train()
        means = {name: torch.stack([f[name] for f in found]).mean() for name in found[0]}
        loss = float(means["first"] + means["rest"])
        if may_keep and loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: value.clone() for name, value in self.mean.state().items()}
        return {f"unseen_{name}": value for name, value in means.items()}

    def finish(self) -> None:
        """Give the model the weights to export: the best mean that was seen."""
        self.model.load_state_dict(self.best or self.mean.state())


def _share(right: Tensor, counted: Tensor) -> Tensor:
    """Share of what is `counted` that is right."""
    return (right & counted).sum() / counted.sum().clamp(min=1)
