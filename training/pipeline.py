"""The whole recipe in one process: each call does what its minutes allow, the next goes on."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from training.chorus import Chorus
from training.codec import CodecTrainer, CodecTraining
from training.codes import CodeBook, encode, held_out_ids
from training.corpus import Stream, utterances
from training.export import round_to_disk, write_heads, write_model, write_speech
from training.imagined import imagine
from training.plan import read
from training.progress import Log
from training.resume import resume
from training.shape import VoiceShape
from training.synthesis import Synthesis, run
from training.talker import TalkerTrainer, TalkerTraining
from training.team import Team
from training.text import write_configuration

CHECKPOINT: Final = "checkpoint"
CODEC: Final = "codec.pt"
TALKER: Final = "talker.pt"
CORPUS: Final = "corpus"
HEADS: Final = "heads.pt"
CODES: Final = "codes.npz"
IMAGINED: Final = "imagined.npz"
_SPENT: Final = "spent.json"
PLAN: Final = "plan.tsv"
_LEAST_S: Final = 5.0


@dataclass(frozen=True)
class Minutes:
    """What each piece takes in all, over as many calls as it needs."""

    speak: float = 10.0
    codec: float = 20.0
    decoder: float = 15.0
    talker: float = 30.0


class Recipe:
    """A work folder, and what has been done in it.

    Args:
        work: where everything appears; `plan.tsv` is there already.
        limit_s: what this call may use.
    """

    def __init__(self, work: Path, minutes: Minutes, device: str, limit_s: float) -> None:
        self.work, self.minutes = work, minutes
        self.team = Team()
        self.device = torch.device(device)
        if self.device.type == "cuda" and self.team.size > 1:
            self.device = torch.device("cuda", self.team.rank % torch.cuda.device_count())
            torch.cuda.set_device(self.device)
        self.plan = work / PLAN
        self._ends = time.monotonic() + limit_s
        work.mkdir(parents=True, exist_ok=True)
        self._spent: dict[str, float] = {}
        self._read_spent()

    def _read_spent(self) -> None:
        file = self.work / _SPENT
        if file.exists():
            self._spent = json.loads(file.read_text(encoding="utf-8"))

    def _meet(self) -> None:
        """Wait for the whole team, and count the time as its leader does."""
        self.team.wait()
        self._read_spent()

    def _led(self, piece: Callable[[], None]) -> None:
        """Let the leader alone do what others wait for."""
        if self.team.leads:
            piece()
        self._meet()

    def left_s(self, piece: str) -> float:
        """Seconds that this call can give to a piece."""
        total = 60 * asdict(self.minutes)[piece]
        return min(total - self._spent.get(piece, 0.0), self._ends - time.monotonic())

    def is_done(self, piece: str) -> bool:
        """Whether a piece has had its time, but for what is not worth a start."""
        total = 60 * asdict(self.minutes)[piece]
        return total - self._spent.get(piece, 0.0) < _LEAST_S

    def _note(self, piece: str, seconds: float) -> None:
        if not self.team.leads:
            return
        self._spent[piece] = self._spent.get(piece, 0.0) + seconds
        (self.work / _SPENT).write_text(json.dumps(self._spent), encoding="utf-8")

    def speak(self, teacher: Path, voices: Path) -> None:
        """Let the teacher speak the plan; each of a team speaks its share."""
        began, seconds = time.monotonic(), self.left_s("speak")
        if seconds < _LEAST_S:
            return
        corpus = self.work / "corpus"
        device = str(self.device)
        share = (self.team.rank, self.team.size)
        job = Synthesis(self.plan, corpus, teacher, voices, device, seconds / 60, share)
        run(job, self._encoded())
        self._note("speak", time.monotonic() - began)

    def configure(self) -> None:
        """Write the checkpoint's configuration and text tokenizer, once."""
        if not (self.work / CHECKPOINT / "config.json").exists():
            texts = [item.text for item in read(self.plan)]
            write_configuration(self.work / CHECKPOINT, VoiceShape(), texts)

    def codec_trainer(self, stage: str, training: CodecTraining | None = None) -> CodecTrainer:
        """The speech tokenizer as it is."""
        training, file = training or CodecTraining(), self.work / CODEC
        return CodecTrainer(file, VoiceShape(), training, self.device, stage)

    def resume(self, checkpoint: Path, heads: Path | None = None) -> None:
        """Begin with the weights of a finished checkpoint; see `training.resume`."""
        files = self.work / CODEC, self.work / TALKER, self.work / CHECKPOINT
        resume(checkpoint, *files, heads=heads)

    def codec(
        self,
        stage: str,
        hours: float = 40.0,
        critics_from: float = 0.5,
        training: CodecTraining | None = None,
    ) -> CodecTrainer:
        """Train the speech tokenizer: stage "all", or "decoder" when the codes stay.

        hours: of the corpus that are read; a few dozen hold all that a decoder can learn. A team
            shares them.
        critics_from: share of the time of stage "all" that passes without critics.
        """
        torch.backends.cudnn.benchmark = self.device.type == "cuda"
        trainer = self.codec_trainer(stage, training)
        piece = "codec" if stage == "all" else "decoder"
        if self.left_s(piece) >= _LEAST_S:
            share = (self.team.rank, self.team.size)
            stream = Stream.load(
                self.work / CORPUS,
                self.device,
                held_out_ids(),
                hours=hours / self.team.size,
                share=share,
            )
            book = CodeBook.load_all(self.work)
            if stage == "decoder" and book is not None:
                stream = stream.with_codes(book.ids, book.starts, book.codes)
            total = 60 * asdict(self.minutes)[piece]
            log = Log(self.work / f"{piece}.jsonl")
            # What was loaded has taken time of this call.
            seconds = max(_LEAST_S, self.left_s(piece))
            # Critics argue about detail; before there is speech they only cost time.
            trainer.run(stream, total, seconds, log, 0.0 if stage == "decoder" else critics_from)
            if self.team.leads:
                trainer.save()
            self._note(piece, trainer.spent[stage] - self._spent.get(piece, 0.0))
        return trainer

    def _encoded(self) -> frozenset[int]:
        """Sentences that are kept as codes; their speech may be gone with an earlier machine."""
        book = CodeBook.load_all(self.work)
        return frozenset(book.ids.tolist() if book else ())

    def encode(self) -> None:
        """Turn what is new in the corpus into codes, once the codes no longer change.

        Each of a team encodes its share into a file of its own.
        """
        known = self._encoded()
        if all(row.id in known for row in utterances(self.work / CORPUS)):
            return
        trainer = self.codec_trainer("all")
        torch.backends.cudnn.benchmark = False  # every batch has another length
        share = (self.team.rank, self.team.size)
        stream = Stream.load(self.work / CORPUS, self.device, known, share=share)
        trainer.finish()
        round_to_disk(trainer.codec)
        book = encode(trainer.codec, stream)
        if self.team.size > 1:
            book.save(self.work / f"codes-{time.time_ns() // 1_000_000}-{self.team.rank}.npz")
            return
        file = self.work / CODES
        if file.exists():
            book = CodeBook.all_of([CodeBook.load(file), book])
        book.save(file)

    def imagine(self, count: int = 20_000) -> None:
        """Make up rough codes for `count` sentences that were not spoken; see `imagined`."""
        book = CodeBook.load_all(self.work)
        if book is None or count <= 0 or (self.work / IMAGINED).exists():
            return
        spoken = set(book.ids.tolist())
        rest = [item for item in read(self.plan) if item.id not in spoken][:count]
        if rest:
            rows = [row for row in utterances(self.work / CORPUS) if row.id in spoken]
            imagine(book, rows, rest, seed=1).save(self.work / IMAGINED)

    def talker(self, training: TalkerTraining | None = None) -> None:
        """Teach talker and code predictor; the checkpoint always holds the latest."""
        if self.left_s("talker") < _LEAST_S:
            return
        trainer = self.talker_trainer(training)
        books = [CodeBook.load_all(self.work)]
        if (self.work / IMAGINED).exists():
            books.append(CodeBook.load(self.work / IMAGINED))
        book = CodeBook.all_of([book for book in books if book is not None])
        log = Log(self.work / "talker.jsonl")
        seconds = max(_LEAST_S, self.left_s("talker"))  # without what loading took
        trainer.run(book, 60 * self.minutes.talker, seconds, log)
        if self.team.leads:
            trainer.save()
            trainer.finish()
            write_model(self.work / CHECKPOINT, trainer.model)
        self._note("talker", trainer.spent - self._spent.get("talker", 0.0))

    def talker_trainer(self, training: TalkerTraining | None = None) -> TalkerTrainer:
        """Talker and code predictor as they are."""
        training = training or TalkerTraining()
        folder = self.work / CHECKPOINT
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return TalkerTrainer(self.work / TALKER, folder, config, training, self.device)

    def chorus(self) -> Chorus:
        """What speaks with the talker as it is."""
        trainer = self.talker_trainer()
        trainer.finish()
        return Chorus(trainer.model, trainer.ids, trainer.splitter)

    def export(self) -> None:
        """Write all weights into the checkpoint, as far as they are trained.

        What training has beside them goes into `heads.pt`, for `resume`.
        """
        trainer = self.codec_trainer("decoder")
        trainer.finish()
        round_to_disk(trainer.codec)
        write_speech(self.work / CHECKPOINT, trainer.codec)
        model = None
        if (self.work / TALKER).exists():
            talker = self.talker_trainer()
            talker.finish()
            model = talker.model
            write_model(self.work / CHECKPOINT, model)
        critics = trainer.critics if trainer.has_critics else None
        write_heads(self.work / HEADS, trainer.codec, critics, model)

    def all(self, teacher: Path, voices: Path) -> bool:
        """Do what is next until the time is over; return whether everything is done.

        All of a team call it.
        """
        self._led(self.configure)
        self.speak(teacher, voices)
        self._meet()
        if not self.is_done("speak"):
            return False
        self.codec("all")
        self._meet()
        if not self.is_done("codec"):
            return False
        self.encode()
        self._meet()
        self._led(self.imagine)
        self.talker()
        self._meet()
        if not self.is_done("talker"):
            return False
        self.codec("decoder")
        self._led(self.export)
        return self.is_done("decoder")
