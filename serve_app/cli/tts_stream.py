"""`tts-stream`: speak a text, a file or what comes on standard input, while it is made."""

import argparse
import base64
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Final

from serve_app.cli import options as command_line
from serve_app.cli import outputs, recordings, voices
from serve_app.cli.client import BrokenOff, Client, Refused, Unreachable
from serve_app.cli.progress import Progress
from serve_app.cli.read_ahead import read_ahead
from serve_app.cli.texts import pieces

# Of a server that does not say.
_RATE_HZ: Final = 24000
_CODES: Final = {
    Refused: 1,
    recordings.Unfit: 2,
    Unreachable: 3,
    BrokenOff: 4,
    outputs.CannotPlay: 5,
    recordings.CannotRecord: 5,
}
_SIGINT: Final = 130


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        if voices.is_meant(given):
            return voices.run(given[1:])
        return _run(command_line.parsed(given))
    except KeyboardInterrupt:
        return _SIGINT
    except BrokenPipeError:
        # Who reads our output has enough. Python would complain when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except tuple(_CODES) as error:
        print(f"tts-stream: {error}", file=sys.stderr)
        return _CODES[type(error)]
    except OSError as error:
        # Not Python's way to say it, with a number before it.
        named = error.filename is not None and error.strerror is not None
        said = f"{error.filename}: {error.strerror}" if named else error
        print(f"tts-stream: {said}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    client = Client(options.base_url, options.api_key, options.timeout)
    if options.models or options.voices:
        _print_lists(client, options)
        return 0
    if options.output is None:
        output: outputs.Output = outputs.speakers()
    elif options.output == "-":
        output = outputs.Stdout(options.format == "wav")
    else:
        outputs.check_place(options.output)  # before any speech is made for it
        output = outputs.File(options.output, options.format == "wav")
    progress = Progress(options.quiet)
    note: str | None = None
    try:
        audio = _audio(client, options, pieces(options.text, options.file), progress)
        for rate_hz, piece in read_ahead(audio):
            output.begin(rate_hz)
            output.write(piece)
        note = output.finish()
        if note and options.format not in ("wav", "pcm"):
            progress.audio_s = _length_s(note)
    except BaseException:
        note = output.abort()
        raise
    finally:
        progress.end(note)
    if progress.first_audio_s is None:
        print("tts-stream: nothing to speak", file=sys.stderr)
        return 2
    return 0


def _audio(
    client: Client, options: argparse.Namespace, texts: Iterator[str], progress: Progress
) -> Iterator[tuple[int, bytes]]:
    """Sample rate and bytes of all pieces; a text is sent when the last one's audio is here."""
    # Samples can be joined and played; a WAV file gets one header for all of them.
    plain = options.format in (None, "wav", "pcm")
    for text in texts:
        progress.asking()
        with client.speech(_body(options, text, "pcm" if plain else options.format)) as answer:
            headers, pieces_of_audio = answer
            rate_hz = int(headers.get("x-sample-rate") or _RATE_HZ)
            for piece in pieces_of_audio:
                progress.arrived(len(piece) / 2 / rate_hz if plain else 0.0)
                yield rate_hz, piece
                progress.asking()


def _body(options: argparse.Namespace, text: str, audio_format: str) -> dict[str, Any]:
    fields = {
        # OpenAI's own API insists on these two; here they stand for the defaults.
        "model": options.model or "gpt-4o-mini-tts",
        "voice": options.voice or "alloy",
        "ref_audio": options.ref_audio and _base64(options.ref_audio),
        "ref_text": options.ref_text,
        "input": text,
        "response_format": audio_format,
        "language": options.language,
        "speed": options.speed,
        "instructions": options.instructions,
        "seed": options.seed,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _base64(path: str) -> str:
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode("ascii")


def _length_s(path: str) -> float:
    """Seconds of an encoded file, by its packets."""
    import av

    with av.open(path) as container:
        return float(
            sum(
                packet.duration * packet.time_base
                for packet in container.demux(audio=0)
                if packet.duration and packet.time_base
            )
        )


def _print_lists(client: Client, options: argparse.Namespace) -> None:
    if options.models:
        for model in client.list("/models"):
            facts = (model.get("task_type"), ", ".join(model.get("languages") or ()))
            print("\t".join([str(model["id"]), *(fact for fact in facts if fact)]))
    if options.voices:
        for voice in client.list("/audio/voices"):
            of = voice.get("alias_of")
            facts = (voice.get("language"), f"as {of}" if of else None, voice.get("description"))
            print("\t".join([str(voice["name"]), *(fact for fact in facts if fact)]))


if __name__ == "__main__":
    sys.exit(main())
