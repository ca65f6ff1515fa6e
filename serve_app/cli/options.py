"""The options of `tts-stream`, and completion scripts for shells."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from serve_app import __version__

FORMATS: Final = ("mp3", "opus", "aac", "flac", "wav", "pcm")
_SUFFIXES: Final = {".ogg": "opus", ".raw": "pcm", ".wave": "wav"}
_DEFAULT_URL: Final = "http://127.0.0.1:8000/v1"
_MOST_TIMEOUT_S: Final = 86400.0

_EPILOG: Final = """\
environment:
  OPENAI_BASE_URL, OPENAI_API_KEY   instead of --base-url and --api-key

exit status:
  0 all was spoken   1 the server refused or failed   2 wrong usage   3 no server there
  4 the speech broke off   5 nothing to play or record with   130 stopped by Ctrl-C

examples:
  tts-stream "Good morning."
  tts-stream -f chapter.txt -o chapter.mp3 --voice alloy
  some-chat-program | tts-stream
  tts-stream voices add anna anna.m4a --text "Good morning."   (tts-stream voices -h)
  tts-stream voices add me --record 12 --text "What I am going to say."
  tts-stream -v anna "Hello."
  eval "$(tts-stream --print-completion bash)"
"""


class _PrintCompletion(argparse.Action):
    """Print a completion script and end; the library is loaded only for that."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        del namespace, option_string
        import shtab

        for action in parser._actions:
            if action.dest in ("file", "output", "ref_audio"):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, str(values)))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="tts-stream",
        description="Speak text through a Qwen3-TTS server, or any other with OpenAI's speech API.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("text", nargs="*", help="what to speak; without it, standard input")
    made.add_argument("-f", "--file", help="speak a text file; - is standard input")
    made.add_argument(
        "-o", "--output", help="write audio to a file instead of playing it; - is standard output"
    )
    made.add_argument(
        "--format", choices=FORMATS, help="of the audio written; default: by the file's name"
    )
    made.add_argument("-m", "--model", help="default: the server's")
    made.add_argument("-v", "--voice", help="default: the server's; --voices lists them")
    made.add_argument("-l", "--language", help="name or code; default: as the text is")
    made.add_argument("-s", "--speed", type=speed, help="0.25 to 4, the pitch stays")
    made.add_argument("-i", "--instructions", help="how to say it, or who speaks")
    made.add_argument("--seed", type=int, help="the same seed gives the same speech")
    made.add_argument("--ref-audio", metavar="FILE", help="speak as the recording in this file")
    made.add_argument("--ref-text", metavar="TEXT", help="what is said in it")
    add_server(made)
    made.add_argument("-q", "--quiet", action="store_true", help="errors only")
    made.add_argument("--voices", action="store_true", help="list voices and end")
    made.add_argument("--models", action="store_true", help="list models and end")
    made.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    made.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=("bash", "zsh", "fish"),
        help="print a completion script for a shell and end",
    )
    return made


def add_server(made: argparse.ArgumentParser) -> None:
    """The options that say where the server is."""
    made.add_argument(
        "--base-url",
        default=os.environ.get("OPENAI_BASE_URL") or _DEFAULT_URL,
        help=f"default: OPENAI_BASE_URL, else {_DEFAULT_URL}",
    )
    made.add_argument(
        "--api-key", help="other users of this machine may see it; OPENAI_API_KEY is better"
    )
    made.add_argument(
        "--timeout", type=timeout, default=60.0, help="seconds without an answer (%(default)g)"
    )


def settle_key(options: argparse.Namespace) -> None:
    options.api_key = options.api_key or os.environ.get("OPENAI_API_KEY")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, of which `format` is decided; ends the program where they are wrong."""
    made = parser()
    options = made.parse_args(arguments)
    if options.text and options.file:
        made.error("give either a text or --file")
    if options.format and not options.output:
        made.error("--format is of --output; what is played needs none")
    if options.output and not options.format:
        options.format = _format_of(options.output)
        if options.format is None:
            made.error(f"no format is known by the name {options.output}; state --format")
    if options.ref_text and not options.ref_audio:
        made.error("--ref-text is what is said in --ref-audio")
    settle_key(options)
    return options


def _format_of(output: str) -> str | None:
    if output == "-":
        return "wav"
    suffix = Path(output).suffix.lower()
    return _SUFFIXES.get(suffix) or (suffix[1:] if suffix[1:] in FORMATS else None)


def speed(value: str) -> float:
    """Type of an option; argparse calls it by this name."""
    factor = float(value)
    if not 0.25 <= factor <= 4:
        raise argparse.ArgumentTypeError("not within 0.25 and 4")
    return factor


def timeout(value: str) -> float:
    """Type of an option, as `speed`."""
    seconds = float(value)
    if not 0 < seconds <= _MOST_TIMEOUT_S:
        raise argparse.ArgumentTypeError(f"not between 0 and {_MOST_TIMEOUT_S:g}")
    return seconds
