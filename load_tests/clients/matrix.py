"""`python -m load_tests.clients matrix`: OpenAI's clients of all ages on one server.

Every format is asked for whole, while it is made and as events, and each answer is decoded; then
the client's own realtime connection, errors, and an answer that breaks off. Each version is
installed from its registry into a folder of its own below --venvs, once. Exit status 1: something
was not as it should be.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import av
import numpy as np

from load_tests.clients.environments import (
    DEFAULT,
    installed,
    node_environment,
    python_environment,
)
from load_tests.clients.tls import tls_front
from load_tests.servers.child import say
from load_tests.servers.fake import AUDIO_S, running_or_fake

PROGRAMS: Final = Path(__file__).parent
FORMATS: Final = ("mp3", "opus", "aac", "flac", "wav", "pcm")
WAYS: Final = ("create", "streaming", "sse")
RATE_HZ: Final = 24000
# What a codec may add, and how loud the quietest answer is.
_CODEC_S: Final = 0.12
_LOUD: Final = 0.01
_WAV_HEADER: Final = 44
_TIMEOUT_S: Final = 600
# Of errors: what the client raises, and a word that has to be in what it says.
ERRORS: Final = {
    "unknown voice": ("BadRequestError", "nobody"),
    "unknown model": ("NotFoundError", "no-such-model"),
    "empty text": ("BadRequestError", "input"),
}
_GOOD: Final = "ok"


@dataclass(frozen=True, slots=True)
class Sdk:
    """One of OpenAI's clients, as its registry has it."""

    language: Literal["python", "node"]
    packages: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.language} {self.packages[0]}"


# The oldest clients do not know the `httpx` of today.
SDKS: Final = (
    Sdk("python", ("openai==1.3.0", "httpx<0.28")),
    Sdk("python", ("openai==1.40.0", "httpx<0.28")),
    Sdk("python", ("openai[realtime]<2",)),
    Sdk("python", ("openai[realtime]>=2,<3",)),
    Sdk("python", ("openai[realtime]>=3,<4",)),
    Sdk("node", ("openai@4", "ws@8")),
    Sdk("node", ("openai@6", "ws@8")),
    Sdk("node", ("openai@7", "ws@8")),
)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.clients matrix")
    parser.add_argument("--url", help="a server that is running; default: one with fake stages")
    parser.add_argument("--venvs", type=Path, default=DEFAULT, help="folder")
    parser.add_argument(
        "--python", action="append", default=[], help="an interpreter for them; may be repeated"
    )
    parser.add_argument("--only", choices=("python", "node"), help="clients of one language")
    return parser.parse_args(arguments)


def command_of(sdk: Sdk, args: argparse.Namespace) -> tuple[list[str], Path | None, str] | None:
    """How its program is started, where, and which version it is; None where it cannot be."""
    folder = args.venvs / "".join(c if c.isalnum() or c in ".-" else "-" for c in sdk.name)
    if sdk.language == "node":
        found = node_environment(folder, sdk.packages)
        if found is None:
            return None
        package = json.loads((found / "node_modules" / "openai" / "package.json").read_text())
        return ["node", str(PROGRAMS / "of_openai.mjs")], found, package["version"]
    python = python_environment(folder, sdk.packages, [*args.python, sys.executable])
    if python is None:
        return None
    return [str(python), str(PROGRAMS / "of_openai.py")], None, installed(python, "openai")


def cases(
    command: Sequence[str], options: Sequence[str], url: str, cwd: Path | None, ca: Path | None
) -> Iterator[dict[str, Any]]:
    """What a client's program tells of each of its cases, with what is wrong as `problem`."""
    env = {**os.environ, **({"NODE_EXTRA_CA_CERTS": str(ca)} if ca else {})}
    with tempfile.TemporaryDirectory(prefix="tts-matrix-") as folder:
        done = subprocess.run(
            [*command, f"{url}/v1", folder, *options],
            cwd=cwd,
            env=env,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        for line in done.stdout.splitlines():
            case = json.loads(line)
            if "file" in case:
                case["audio"] = decoded(Path(case["file"]).read_bytes(), case["format"])
            yield case
        if done.returncode:
            yield {"case": "its end", "error": done.stderr[-2000:]}


def decoded(data: bytes, form: str) -> np.ndarray:
    """float32 [N] at `RATE_HZ`, whatever the format."""
    if form == "pcm":
        return np.frombuffer(data, "<i2").astype(np.float32) / 32768
    if form == "wav":
        return decoded(data[_WAV_HEADER:], "pcm")
    with av.open(BytesIO(data)) as container:
        resampler = av.AudioResampler("flt", "mono", RATE_HZ)
        frames = [
            one for frame in container.decode(audio=0) for one in resampler.resample(frame)
        ] + resampler.resample(None)
        return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def problem(case: Mapping[str, Any], expected_s: float | None) -> str | None:
    """What is wrong with a case; `expected_s` is the length of its audio, where known."""
    if "error" in case:
        return str(case["error"])
    if "raised" in case:
        kind, word = ERRORS.get(case["case"], ("", ""))
        if kind not in case["raised"] or word not in case["message"]:
            return f"{case['raised']}: {case['message']}"
        return None
    if "absent" in case:
        return None
    if "," in (case.get("request_id") or ""):
        return f"two request ids: {case['request_id']}"
    audio = case["audio"]
    if not len(audio) or np.abs(audio).max() < _LOUD:
        return "silence"
    length_s = len(audio) / RATE_HZ
    if expected_s is not None and not -0.001 <= length_s - expected_s <= _CODEC_S:
        return f"{length_s:.2f} s, {expected_s:.2f} s expected"
    return None


def row(found: Sequence[tuple[Mapping[str, Any], str | None]]) -> list[str]:
    """The cells of one client: a format each with its three ways, realtime, errors, breaking."""
    told: dict[str, str] = {}
    for case, wrong in found:
        told[case["case"]] = "-" if "absent" in case else _GOOD if wrong is None else "FAIL"
    groups = [[f"{form} {way}" for way in WAYS] for form in FORMATS]
    groups += [["pcm realtime"], list(ERRORS), [f"breaks off, {way}" for way in WAYS]]
    return [_cell([told.get(name, "-") for name in names]) for names in groups]


def _cell(parts: Sequence[str]) -> str:
    return parts[0] if len(set(parts)) == 1 else " ".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    head = ["client", *FORMATS, "realtime", "errors", "broken off"]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    rows: list[list[str]] = []
    bad = 0
    with (
        running_or_fake(args.url) as (url, is_fake),
        tls_front(url, args.venvs / "tls") as front,
    ):
        for sdk in SDKS:
            if args.only not in (None, sdk.language):
                continue
            made = command_of(sdk, args)
            if made is None:
                say(f"{sdk.name}: skipped, {sdk.language} is not here")
                continue
            command, cwd, version = made
            options = ["--breaks"] if is_fake else []
            wss, ca = front or (url if url.startswith("https:") else None, None)
            if sdk.language == "node" and wss:
                options += ["--wss", f"{wss}/v1"]
            told = [
                (case, problem(case, AUDIO_S if is_fake else None))
                for case in cases(command, options, url, cwd, ca)
            ]
            for case, wrong in told:
                bad += wrong is not None
                if wrong is not None:
                    say(f"{sdk.language} {version}, {case['case']}: {wrong}")
            rows.append([f"{sdk.language} {version}", *row(told)])
    say(f"Of each format: {', '.join(WAYS)}; - = the client has no such thing.\n\n{table(rows)}")
    return int(bad > 0)
