"""`python -m load_tests.clients`: the client code of others, as it comes from the registry, on a
server that is running, or on one with fake stages. `matrix` has OpenAI's own clients, of all ages.

Each client gets a virtual environment of its own below --venvs, made once. Exit status 1: one of
them got no audio, or too little.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from load_tests.clients import matrix
from load_tests.clients.environments import DEFAULT, installed, python_environment
from load_tests.servers.child import say
from load_tests.servers.fake import AUDIO_S, running_or_fake

PROGRAMS: Final = Path(__file__).parent
# What a server makes that is no fake, at least.
_SOME_S: Final = 0.5
# What a codec adds, a client's resampler keeps, and a pause between two sentences.
_TOLERANCE_S: Final = 0.2
_QUIET: Final = 300
_TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Program:
    """A client: what to install for it, and the program of this folder that has it speak."""

    packages: tuple[str, ...]
    file: str
    newer_than: tuple[int, int] = (3, 10)


CLIENTS: Final[Mapping[str, Program]] = {
    "livekit": Program(("livekit-agents", "livekit-plugins-openai"), "of_livekit.py"),
    "pipecat": Program(("pipecat-ai[openai,together]",), "of_pipecat.py"),
    "wyoming": Program(("wyoming-openai",), "of_wyoming.py", (3, 11)),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.clients", description=__doc__)
    parser.add_argument("clients", nargs="*", metavar="client", help=f"of {', '.join(CLIENTS)}")
    parser.add_argument("--url", help="a server that is running; default: one with fake stages")
    parser.add_argument("--venvs", type=Path, default=DEFAULT, help="folder")
    parser.add_argument(
        "--python", action="append", default=[], help="an interpreter for them; may be repeated"
    )
    args = parser.parse_args(arguments)
    unknown = set(args.clients) - set(CLIENTS)
    if unknown:
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    return args


def cases(name: str, python: Path, url: str) -> Iterator[dict[str, Any]]:
    """What the client tells of each of its cases."""
    program = PROGRAMS / CLIENTS[name].file
    done = subprocess.run(
        [str(python), str(program), f"{url}/v1"],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
    if done.returncode:
        yield {"case": "its end", "error": done.stderr[-2000:]}


def problem(case: Mapping[str, Any], expected_s: float | None) -> str | None:
    """What is wrong with a case; `expected_s` is of a request at the usual speed, where known."""
    if "error" in case:
        return str(case["error"])
    if case["loudest"] < _QUIET:
        return "silence"
    if expected_s is None:
        return None if case["audio_s"] >= _SOME_S else f"only {case['audio_s']:.2f} s"
    expected_s *= case.get("requests", 1) / case.get("speed", 1.0)
    if abs(case["audio_s"] - expected_s) > _TOLERANCE_S:
        return f"{case['audio_s']:.2f} s, {expected_s:.2f} s expected"
    return None


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] == "matrix":
        return matrix.main(arguments[1:])
    args = parse(arguments)
    pythons = [*args.python, sys.executable]
    bad = 0
    with running_or_fake(args.url) as (url, is_fake):
        expected_s = AUDIO_S if is_fake else None
        for name in args.clients or CLIENTS:
            program = CLIENTS[name]
            folder = args.venvs / name
            python = python_environment(folder, program.packages, pythons, program.newer_than)
            if python is None:
                older = ".".join(map(str, program.newer_than))
                say(f"{name}: skipped, needs a Python newer than {older}: --python")
                continue
            say(f"{name} {installed(python, program.packages[0])}")
            for case in cases(name, python, url):
                wrong = problem(case, expected_s)
                bad += wrong is not None
                first_s = case.get("first_audio_s")
                first = "" if first_s is None else f", first audio after {1000 * first_s:.0f} ms"
                told = wrong or f"{case['audio_s']:.2f} s{first}"
                say(f"  {case['case']}: {told}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
