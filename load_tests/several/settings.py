"""What is served and asked: the command line, the config files of the servers, the requests."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from load_tests.loops.options import frames_of
from load_tests.loops.workload import SpeechCall, Workload
from load_tests.servers.settings import CONFIGS, configured
from serve_app.config import PROFILES
from serve_app.launch.overrides import with_models

SIZES: Final = ("tiny", "tiny-0b6", "0.6b", "1.7b")
TASKS: Final = ("base", "custom_voice", "voice_design")
TOGETHER: Final = "together"
# Of the library, that requests to a checkpoint that clones are spoken with.
VOICE: Final = "Bench"
_DEFAULT: Final = ("base=0.6b:base", "custom=1.7b:custom_voice", "design=1.7b:voice_design")
_DESCRIPTION: Final = "A calm, deep voice, close to the microphone."


@dataclass(frozen=True, slots=True)
class Model:
    """A checkpoint with random weights, by the name that it is served under."""

    name: str
    size: str
    task: str

    @property
    def folder(self) -> str:
        return f"{self.size}-{self.task}".replace("_", "-")

    def workload(self, args: argparse.Namespace) -> "TaskWorkload":
        low, high = frames_of(args.frames)
        voice, more = {
            "base": (VOICE, {}),
            "custom_voice": ("ryan", {}),
            "voice_design": (None, {"instructions": _DESCRIPTION}),
        }[self.task]
        return TaskWorkload(
            voice=voice,
            model=self.name,
            min_frames=low,
            max_frames=high,
            seed=args.seed,
            more=more,
        )


@dataclass(frozen=True, slots=True)
class TaskWorkload(Workload):
    """A workload whose requests have `more` fields."""

    more: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def call(self, index: int, share: float = 1.0) -> SpeechCall:
        plain = Workload.call(self, index, share)
        return dataclasses.replace(
            plain, body=json.dumps({**json.loads(plain.body), **self.more}).encode()
        )


def model_of(text: str) -> Model:
    """Read NAME=SIZE:TASK.

    Raises:
        ArgumentTypeError: it is something else.
    """
    name, _, rest = text.partition("=")
    size, _, task = rest.partition(":")
    if not name or name == TOGETHER or size not in SIZES or task not in TASKS:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not NAME=SIZE:TASK, with {', '.join(SIZES)} and {', '.join(TASKS)}"
        )
    return Model(name, size, task)


def config_of(args: argparse.Namespace, models: Sequence[Model], library: Path) -> dict[str, Any]:
    """What `python -m serve_app --model NAME=FOLDER ...` makes of the placement's config file."""
    settings = [f"ingress.voices.path={library.resolve()}", *args.override]
    config = configured(args.placement, settings, args.capacity, args.profile)
    named = [f"{model.name}={(args.checkpoints / model.folder).resolve()}" for model in models]
    return with_models(config, named, args.gpus)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m load_tests.several",
        description="Measure several checkpoints in one server, and each in one of its own.",
    )
    parser.add_argument(
        "--models", nargs="+", type=model_of, metavar="NAME=SIZE:TASK", help=", ".join(_DEFAULT)
    )
    parser.add_argument(
        "--servers",
        nargs="+",
        metavar="NAME",
        help=f"of which models, each alone, and `{TOGETHER}` for all; default: all, in this order",
    )
    parser.add_argument(
        "--checkpoints", type=Path, help="folder for them; what is there already is used"
    )
    parser.add_argument("--placement", choices=tuple(CONFIGS), default="fused")
    parser.add_argument("--profile", choices=(*PROFILES, "auto"))
    parser.add_argument("--capacity", type=int, help="streams of each model: all limits at once")
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--level-s", type=float, default=8.0, help="s, of each closed loop")
    parser.add_argument("--burst", type=int, default=16, help="requests at once; 0: no bursts")
    parser.add_argument("--frames", default="55", help="of a request: N or MIN:MAX")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clip-s", type=int, nargs="+", default=[3, 10, 30])
    parser.add_argument("--clips", type=int, default=5, help="recordings of each length")
    parser.add_argument("--settle", type=float, default=6.0, help="s between ready and the load")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--caches", type=Path, help="folder for what compilers keep")
    parser.add_argument("--ready-timeout", type=float, default=300.0, help="s")
    parser.add_argument(
        "--budget-s", type=float, help="start no server that would not be done within it"
    )
    parser.add_argument("--again", action="store_true", help="what has been measured as well")
    parser.add_argument("--commit", help="what to report where there is no git repository")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    args = parser.parse_args(arguments)
    args.models = args.models or [model_of(text) for text in _DEFAULT]
    names = [model.name for model in args.models]
    if len(set(names)) < len(names):
        parser.error("--models: each needs a name of its own")
    args.servers = args.servers or [TOGETHER, *names]
    if unknown := set(args.servers) - {TOGETHER, *names}:
        parser.error(f"--servers: there is no {', '.join(sorted(unknown))}")
    args.checkpoints = args.checkpoints or args.out / "checkpoints"
    return args
