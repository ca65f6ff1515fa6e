"""The speech tokenizer: encoder, codebooks and decoder, trained to give the waveform back.

Two stages. In the first everything learns, and the first codebook also learns to tell the phonemes
of its frame, which makes it a target that a small talker can learn. Then encoder and codebooks stay
as they are, so that codes no longer change, and the decoder goes on with critics, from the codes of
whole sentences, as it gets them when it speaks.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.corpus import FRAME_SAMPLES, NUM_LABELS, SLOTS, Stream
from training.critics import Critics
from training.losses import (
    critic_loss,
    mishearing,
    persuasion,
    phase_distance,
    spectral_distance,
)
from training.mean import RunningMean
from training.progress import Clock, Log
from training.quantizer import LearnedCodebooks
from training.reference import load_reference
from training.replay import Replayed, capturable_adamw, moments, set_moments, set_rate
from training.shape import VoiceShape, voice_speech_config
from training.snake import hasten
from training.stacks import decoder_stack, encoder_stack
from training.team import Team

_SAVE_EVERY_S: Final = 60.0
_FAR_SEED: Final = 1_000_003


@dataclass(frozen=True)
class CodecTraining:
    """How the codec is trained; weights of the losses are relative to one another.

    unquantised_share: of the time, before the codebooks are placed, so that they start on latents
    that mean something. start_batches: batches whose vectors they are placed by.
    critic_frames, critic_crops: what the critics see of a batch; they cost ten times the codec.
    misread_weight, mishearing_weight: of the phonemes that a listener tells from what was made, and
    of its inner features.
    phase_weight: of how phases go on below 3 kHz; with 0 nobody looks.
    critics_ahead: share of the time in which critics that start anew learn alone, with the head
        for phonemes, where they take part from the first step: what they want before they have
        heard much is noise.
    mean_steps: how far back the running mean of the weights reaches, which is what is exported.
    books_learn: whether stage `all` moves the codebooks. Where they stay, a code goes on meaning
        what it meant, so that a talker need only follow the encoder.
    """

    batch: int = 24
    crop_frames: int = 14
    critic_frames: int = 6
    critic_crops: int = 12
    learning_rate: float = 5e-4
    decoder_rate: float = 4e-4
    critic_rate: float = 3e-4
    head_rate: float = 1e-3
    mel_weight: float = 10.0
    spectrum_weight: float = 2.0
    phase_weight: float = 0.0
    commitment_weight: float = 0.25
    phoneme_weight: float = 3.0
    adversarial_weight: float = 1.5
    matching_weight: float = 4.0
    mishearing_weight: float = 2.0
    misread_weight: float = 0.5
    critics_ahead: float = 0.08
    unquantised_share: float = 0.12
    start_batches: int = 40
    critic_width: int = 32
    mean_steps: float = 500.0
    books_learn: bool = True
    seed: int = 1


class Codec(nn.Module):
    """The reference's tokenizer with codebooks that learn.

    The reference's own codebook tensors are filled on export; until then they are unused.
    """

    def __init__(self, shape: VoiceShape) -> None:
        super().__init__()
        speech, _ = load_reference()
        config = speech.Qwen3TTSTokenizerV2Config(**voice_speech_config(shape))
        self.speech: Any = speech.Qwen3TTSTokenizerV2Model(config)
        self.books = LearnedCodebooks(shape.num_groups, shape.num_codes, shape.entry_dim)
        self.phonemes = nn.Linear(shape.entry_dim, SLOTS * NUM_LABELS)
        _initialise(self.speech.decoder)

    def prepare(self) -> None:
        """Keep the encoder's stride tensors on the CPU, where each use costs no synchronisation."""
        for module in self.speech.encoder.modules():
            for name in ("stride", "kernel_size", "padding_total"):
                value = getattr(module, "_buffers", {}).get(name)
                if value is not None and value.ndim == 0:
                    module._buffers[name] = value.cpu()

    def latent(self, wave: Tensor) -> Tensor:
        """What the quantisers read, [B, hidden, T], of samples [B, T * 1920]."""
        encoder = self.speech.encoder
        hidden = encoder.encoder(wave[:, None])
        window = int(encoder.config.sliding_window)
        hidden = encoder_stack(encoder.encoder_transformer, hidden.transpose(1, 2), window)
        return encoder.downsample(hidden.transpose(1, 2))

    def projections(self, wave: Tensor) -> tuple[Tensor, Tensor]:
        """What the first codebook and the others read, [B, dim, T] each."""
        latent, quantizer = self.latent(wave), self.speech.encoder.quantizer
        semantic = quantizer.semantic_residual_vector_quantizer.input_proj(latent)
        return semantic, quantizer.acoustic_residual_vector_quantizer.input_proj(latent)

    def quantise(self, wave: Tensor, learn: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what `LearnedCodebooks` does, of samples [B, T * 1920]."""
        return self.books(*self.projections(wave), learn)

    @torch.no_grad()
    def place_books(self, waves: Iterable[Tensor]) -> None:
        """Start the codebooks on the latents of some speech."""
        found = [self.projections(wave) for wave in waves]
        flat = [torch.cat([f[i].transpose(1, 2).flatten(0, 1) for f in found]) for i in (0, 1)]
        self.books.start(*flat)

    def entries_of(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Return the semantic entry and the sum of the acoustic ones, [B, dim, T] each.

        Args:
            codes: int64 [B, groups, T].
        """
        books = self.books.entries
        chosen = torch.stack([F.embedding(codes[:, g], books[g]) for g in range(codes.shape[1])])
        return chosen[0].transpose(1, 2), chosen[1:].sum(0).transpose(1, 2)

    def decode(self, semantic: Tensor, acoustic: Tensor) -> Tensor:
        """Return samples [B, T * 1920] of quantised vectors [B, dim, T]."""
        decoder = self.speech.decoder
        hidden = decoder.quantizer.rvq_first.output_proj(semantic)
        hidden = hidden + decoder.quantizer.rvq_rest.output_proj(acoustic)
        hidden = decoder.pre_conv(hidden).transpose(1, 2)
        window = int(decoder.config.sliding_window)
        hidden = decoder_stack(decoder.pre_transformer, hidden, window).transpose(1, 2)
        for blocks in decoder.upsample:
            for block in blocks:
                hidden = block(hidden)
        for block in decoder.decoder:
            hidden = block(hidden)
        return hidden[:, 0]

    def phoneme_loss(self, semantic: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Cross entropy of the frame's phonemes by the first codebook, and how many are right."""
        scores = self.phonemes(semantic.transpose(1, 2)).view(*labels.shape, NUM_LABELS)
        loss = F.cross_entropy(scores.flatten(0, 2), labels.flatten())
        return loss, (scores.argmax(-1) == labels).float().mean()

    @torch.no_grad()
    def encode(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """Codes int64 [groups, T] of each sentence [T * 1920].

        The encoder is causal, so what follows a shorter sentence does not change its codes.
        """
        padded = nn.utils.rnn.pad_sequence(list(waves), batch_first=True)
        codes = self.quantise(padded, learn=False)[2]
        return [
            row[:, : len(wave) // FRAME_SAMPLES] for row, wave in zip(codes, waves, strict=True)
        ]


def _initialise(decoder: nn.Module) -> None:
    """Give the decoder weights to start from; the reference leaves this to whoever loads some."""
    for module in decoder.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d | nn.Linear):
            module.reset_parameters()
    for name, parameter in decoder.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.1)
        if name.endswith("layer_scale.scale"):
            nn.init.constant_(parameter, 0.1)


class CodecTrainer:
    """One run of training, resumable from `file`; with others of a `Team`, in step with them.

    Args:
        stage: "all", or "decoder" with encoder and codebooks as they are.
    """

    def __init__(
        self, file: Path, shape: VoiceShape, config: CodecTraining, device: torch.device, stage: str
    ) -> None:
        self.file, self.config, self.device, self.stage = file, config, device, stage
        self.team = Team()
        torch.manual_seed(config.seed)
        self.codec = Codec(shape).to(device)
        self.codec.prepare()
        hasten(self.codec.speech.decoder, device)
        self.critics = Critics(config.critic_width).to(device)
        learned: nn.Module = self.codec.speech.decoder if stage == "decoder" else self.codec
        self.learned = list(learned.parameters())
        self.rate = config.decoder_rate if stage == "decoder" else config.learning_rate
        head = list(self.codec.phonemes.parameters())
        others = [p for p in self.learned if all(p is not own for own in head)]
        self.optimizer = capturable_adamw(
            others, device, self.rate, betas=(0.8, 0.99), weight_decay=1e-3
        )
        self.head_optimizer = capturable_adamw(head, device, config.head_rate, betas=(0.8, 0.99))
        self.critic_optimizer = capturable_adamw(
            self.critics.parameters(), device, config.critic_rate, betas=(0.8, 0.99)
        )
        self.spent = {"all": 0.0, "decoder": 0.0}
        self.steps = 0
        stored = torch.load(file, map_location=device, weights_only=True) if file.exists() else {}
        if stored:
            self._load(stored)
        self.has_critics = "critics" in stored  # else they know nothing
        self.mean = RunningMean(self.codec, config.mean_steps)
        if "mean" in stored:
            self.mean.set_state(stored["mean"])
        self.has_books = bool(self.codec.books.started)
        self.codec.books.moves = self.team.size == 1
        # Whether all of the team have the same books, which follow what each sees from then on.
        self._is_agreed = self.has_books

    def _load(self, stored: dict[str, Any]) -> None:
        # A new stage begins with the mean, as codes are made with its encoder.
        goes_on = stored.get("stage") == self.stage or "mean" not in stored
        self.codec.load_state_dict(stored["codec" if goes_on else "mean"])
        self.codec.prepare()
        self.steps, self.spent = stored["steps"], stored["spent"]
        if "critics" in stored:
            # Without what is newer than the file.
            self.critics.load_state_dict(stored["critics"], strict=False)
        if stored.get("stage") == self.stage:
            set_moments(self.optimizer, stored["moments"], self.device)
            set_moments(self.head_optimizer, stored.get("head_moments", {}), self.device)
            set_moments(self.critic_optimizer, stored["critic_moments"], self.device)

    def _meet_about_books(self) -> None:
        """Take the mean of the codebooks, or the leader's where each has placed its own."""
        books = (self.codec.books.usage, self.codec.books.total)
        if self._is_agreed:
            self.team.average(books)
        elif self.team.any(not self.has_books):
            return
        self._is_agreed = True
        if self.team.leads:
            self.codec.books.revive()
        self.team.share(books)

    def save(self) -> None:
        """Write what a later call goes on from."""
        part = self.file.with_suffix(".part")
        state = {
            "codec": self.codec.state_dict(),
            "mean": self.mean.state(),
            "critics": self.critics.state_dict(),
            "steps": self.steps,
            "spent": self.spent,
            "stage": self.stage,
            "moments": moments(self.optimizer),
            "head_moments": moments(self.head_optimizer),
            "critic_moments": moments(self.critic_optimizer),
        }
        torch.save(state, part)
        part.rename(self.file)

    def run(
        self, stream: Stream, total_s: float, limit_s: float, log: Log, critics_from: float
    ) -> None:
        """Train until the clock says stop; critics take part from that share of the time on.

        Raises:
            ValueError: codebooks are to stay as they are, and there are none.
        """
        config = self.config
        if not (config.books_learn or self.has_books):
            raise ValueError(f"{self.file} has no codebooks to keep")
        clock = Clock(total_s, limit_s, self.spent[self.stage])
        seed = config.seed + self.steps + _FAR_SEED * self.team.rank
        torch.manual_seed(seed)
        generator = torch.Generator(self.device).manual_seed(seed)
        steps: dict[tuple[bool, bool], Replayed] = {}
        saved, began, first_step = time.monotonic(), time.monotonic(), self.steps
        while True:
            is_over = clock.is_over
            if self.team.meets(self.steps):
                self.team.average((*self.learned, *self.critics.parameters()))
                if self.stage == "all" and config.books_learn:
                    self._meet_about_books()
                is_over = self.team.any(is_over)
            if is_over and (self.team.size == 1 or self.team.meets(self.steps)):
                break
            set_rate(self.optimizer, self.rate_now(clock, critics_from))
            set_rate(self.head_optimizer, clock.rate(config.head_rate, final=0.05))
            set_rate(self.critic_optimizer, clock.rate(config.critic_rate, final=0.1))
            if not self.has_books and clock.progress >= config.unquantised_share:
                self._place_books(stream, generator)
                self.has_books = True
            key = (self.has_books, clock.progress >= critics_from)
            if key not in steps:
                step = partial(self._step, *key) if self.stage == "all" else self._polish
                steps[key] = Replayed(step, self.device)
            drawn = stream.crops if self.stage == "all" else stream.coded_crops
            found = steps[key](*drawn(config.batch, config.crop_frames, generator))
            self.steps += 1
            self.mean.follow(self.steps)
            if not self.team.leads:
                continue
            if log.is_due:
                a_second = (self.steps - first_step) / (time.monotonic() - began)
                log.write(step=self.steps, seconds=clock.used_s, steps_a_second=a_second, **found)
            if time.monotonic() - saved > _SAVE_EVERY_S:
                self.spent[self.stage], saved = clock.used_s, time.monotonic()
                self.save()
        self.spent[self.stage] = clock.used_s

    def rate_now(self, clock: Clock, critics_from: float) -> float:
        """Return the learning rate of encoder and decoder; see `run` for `critics_from`."""
        is_ahead = clock.progress < self.config.critics_ahead
        if critics_from == 0 and not self.has_critics and is_ahead:
            return 0.0
        return clock.rate(self.rate, final=0.05)

    def finish(self) -> None:
        """Give the codec the weights to encode with and to export: the running mean.

        Codebooks are running means by themselves.
        """
        self.codec.load_state_dict(self.mean.state())
        self.codec.prepare()

    def _place_books(self, stream: Stream, generator: torch.Generator) -> None:
        config = self.config
        self.codec.place_books(
            stream.crops(config.batch, config.crop_frames, generator)[0]
            for _ in range(config.start_batches)
        )

    def _autocast(self) -> torch.autocast:
        """bfloat16 on a GPU; nothing is cached, as that would be lost between replays."""
        on_gpu = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False)

    def _step(
        self, quantised: bool, critics: bool, wave: Tensor, labels: Tensor
    ) -> dict[str, Tensor]:
        """Learn from one batch of crops; see `Stream.crops`."""
        config, codec = self.config, self.codec
        self.optimizer.zero_grad(set_to_none=True)
        self.head_optimizer.zero_grad(set_to_none=True)
        if quantised:
            semantic, acoustic, codes, commitment = codec.quantise(wave, learn=config.books_learn)
        else:
            semantic, acoustic = codec.projections(wave)
            # A soft bound on the size of the latent, which no codebook bounds yet.
            commitment = 0.01 * (semantic.square().mean() + acoustic.square().mean())
            codes = torch.zeros_like(labels.transpose(1, 2))
        phoneme, right = codec.phoneme_loss(semantic, labels)
        made = codec.decode(semantic, acoustic).float()
        loss, found = self._compared(wave, labels, made, critics)
        loss = loss + config.commitment_weight * commitment + config.phoneme_weight * phoneme
        self._learn(loss)
        self.head_optimizer.step()
        found |= {
            "commitment": commitment,
            "phoneme": phoneme,
            "phonemes_right": right,
            "codes_used": _distinct(codes),
        }
        return {name: value.detach() for name, value in found.items()}

    def _polish(self, wave: Tensor, labels: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Teach the decoder alone; see `Stream.coded_crops`."""
        codec = self.codec
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            semantic, acoustic = codec.entries_of(codes)
        made = codec.decode(semantic, acoustic).float()
        loss, found = self._compared(wave, labels, made, critics=True)
        self._learn(loss)
        return {name: value.detach() for name, value in found.items()}

    def _compared(
        self, wave: Tensor, labels: Tensor, made: Tensor, critics: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is wrong with what the decoder made, and single figures of it."""
        mel, spectrum = spectral_distance(made, wave)
        taught = self._teach(wave, labels, made, critics)
        loss, judged = self._judged(wave, labels, made, critics)
        loss = loss + self.config.mel_weight * mel + self.config.spectrum_weight * spectrum
        found = {"mel": mel, "spectrum": spectrum, **taught, **judged}
        if self.config.phase_weight:
            found["phase"] = phase_distance(made, wave)
            loss = loss + self.config.phase_weight * found["phase"]
        return loss, found

    def _learn(self, loss: Tensor) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 10.0)
        self.optimizer.step()

    def _teach(
        self, wave: Tensor, labels: Tensor, made: Tensor, critics: bool
    ) -> dict[str, Tensor]:
        """One step of the listener and, if they take part, of the critics.

        Critics hear the end of each crop, where the decoder has seen most of what came before, as
        it has when it speaks.
        """
        self.critic_optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            scores = self.critics.listener(wave)[-1].float()
        read = F.cross_entropy(scores, labels.flatten(1))
        found = {"read": read}
        read.backward()
        if critics:
            both = torch.cat((self._heard(wave), self._heard(made).detach()))
            with self._autocast():
                # Both in one pass, as the critics' layers are too small to fill a GPU.
                halves = [[layer.chunk(2) for layer in one] for one in self.critics(both)]
                critic = critic_loss(
                    *([[layer[half] for layer in own] for own in halves] for half in (0, 1))
                )
            critic.backward()
            found["critic"] = critic
        self.critic_optimizer.step()
        return found

    def _heard(self, wave: Tensor) -> Tensor:
        """What of a batch the critics hear."""
        frames = self.config.critic_frames
        return wave[: self.config.critic_crops, -frames * FRAME_SAMPLES :]

    def _judged(
        self, wave: Tensor, labels: Tensor, made: Tensor, critics: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the listener and the critics have against what was made."""
        config, judges = self.config, self.critics
        judges.requires_grad_(False)
        with torch.no_grad(), self._autocast():
            of_real = judges.listener(wave)
        with self._autocast():
            of_made = judges.listener(made)
        misread = F.cross_entropy(of_made[-1].float(), labels.flatten(1))
        misheard = mishearing(of_real, of_made)
        loss = config.misread_weight * misread + config.mishearing_weight * misheard
        found = {"misread": misread, "misheard": misheard}
        if critics:
            with torch.no_grad(), self._autocast():
                real = judges(self._heard(wave))
            with self._autocast():
                adversarial, matching = persuasion(real, judges(self._heard(made)))
            loss = loss + config.adversarial_weight * adversarial
            loss = loss + config.matching_weight * matching
            found |= {"adversarial": adversarial, "matching": matching}
        judges.requires_grad_(True)
        return loss, found


def _distinct(codes: Tensor) -> Tensor:
    """How many different codes of the first acoustic book are in codes [B, groups, T]."""
    sorted_codes = codes[:, 1].flatten().sort().values
    return 1 + (sorted_codes.diff() != 0).sum()
