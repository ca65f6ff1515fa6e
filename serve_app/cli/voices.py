"""`tts-stream voices`: the voice library of a server."""

import argparse
import json
import random
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from serve_app.cli import options as command_line
from serve_app.cli import outputs, recordings
from serve_app.cli.client import Client, as_json

_PATH: Final = "/audio/voices"
_ALIASES: Final = "/audio/voice_aliases"
_DEFAULT: Final = "/audio/default_voice"
_CONSENTS: Final = "/audio/voice_consents"
VERBS: Final = (
    *("list", "add", "audition", "design", "show", "play", "edit", "rename", "delete", "download"),
    *("alias", "unalias", "default", "consents", "consent", "withdraw"),
)
_KINDS: Final = ("audio_sample", "prompt", "embedding")
# What a described voice is heard with: some seconds, and many sounds.
_SCRIPT: Final = (
    "Hello, and welcome. A quick look at the pages of a good book, and the whole evening is gone"
    " before you have put it down."
)
_RATE_HZ: Final = 24000


def is_meant(arguments: Sequence[str]) -> bool:
    """Whether these are a command about voices, and not a text to speak."""
    return arguments[:1] == ["voices"] and (len(arguments) == 1 or arguments[1] in (*VERBS, "-h"))


def parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    command_line.add_server(shared)
    made = argparse.ArgumentParser(prog="tts-stream voices", description=__doc__)
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, does: str, *positional: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=does, description=does, parents=[shared])
        for argument in positional:
            added.add_argument(argument)
        return added

    verb("list", "your voices, and those that are shared with you")
    add = verb("add", "upload a recording of 1 to 30 s as a voice", "name")
    _add_recording(add)
    add.add_argument("--text", help="what is said in it: with it the voice is much more like")
    add.add_argument("--language", help="of the recording, as en or pt-BR")
    add.add_argument("--description")
    add.add_argument("--consent", help="id of a recorded consent")
    add.add_argument("--shared", action="store_true", help="other keys may speak with it")
    audition = verb("audition", "hear a voice of a description; nothing is kept", "description")
    design = verb("design", "keep the voice of a description", "name", "description")
    for described in (audition, design):
        described.add_argument("--say", default=_SCRIPT, help="what it says; default: a sentence")
        described.add_argument("--language", help="of what it says, as en or German")
        described.add_argument("--seed", type=int, help="another seed, another voice")
    audition.add_argument("-o", "--output", help="write a WAV file instead of playing it")
    design.add_argument("--shared", action="store_true", help="other keys may speak with it")
    verb("show", "what is known of a voice", "name")
    verb("play", "hear the recording of a voice", "name")
    edit = verb("edit", "change what is known of a voice; an empty text takes it away", "name")
    edit.add_argument("--text", help="what is said in its recording")
    edit.add_argument("--language")
    edit.add_argument("--description")
    sharing = edit.add_mutually_exclusive_group()
    sharing.add_argument("--shared", action="store_true", default=None, help="with other keys")
    sharing.add_argument("--private", action="store_false", dest="shared", help="or not")
    verb("rename", "give a voice another name", "name", "new_name")
    verb("delete", "delete a voice", "name")
    download = verb("download", "fetch the recording of a voice, as FLAC", "name")
    download.add_argument("-o", "--output", help="default: NAME.flac; - is standard output")
    verb("alias", "another name for a voice; OpenAI's names may be given too", "alias", "name")
    verb("unalias", "take another name away", "alias")
    default = verb("default", "the voice that answers where none is named; without NAME, show it")
    default.add_argument("name", nargs="?")
    default.add_argument("--none", action="store_true", help="go back to the model's own")
    verb("consents", "the recordings in which somebody agrees to the use of a voice")
    consent = verb("consent", "upload such a recording; says its id, for `add --consent`", "name")
    _add_recording(consent)
    consent.add_argument("--language", required=True, help="of the recording, as en or pt-BR")
    verb("withdraw", "delete a consent", "id")
    return made


def _add_recording(verb: argparse.ArgumentParser) -> None:
    """Where a recording comes from, and which part of it is meant."""
    source = verb.add_mutually_exclusive_group(required=True)
    source.add_argument("recording", nargs="?", help="file of any usual kind")
    source.add_argument(
        "--record", type=float, metavar="SECONDS", help="by the microphone, instead of a file"
    )
    verb.add_argument("--from", type=float, metavar="SECONDS", dest="begin_s", help="leave out")
    verb.add_argument("--to", type=float, metavar="SECONDS", dest="end_s", help="and from here on")


def run(arguments: Sequence[str]) -> int:
    """
    Raises:
        Refused, Unreachable, BrokenOff: by the server, or there is none.
        CannotPlay, CannotRecord, Unfit: by this machine, or the file.
        OSError: a file cannot be read or written.
    """
    options = parser().parse_args(list(arguments) or ["list"])
    command_line.settle_key(options)
    client = Client(options.base_url, options.api_key, options.timeout)
    match options.verb:
        case "list":
            voices = [v for v in client.list(_PATH) if v.get("type") in _KINDS]
            for voice in voices:
                _print_line(voice)
            if not voices:
                hint = "the library is empty; speakers of the model: tts-stream --voices"
                print(f"tts-stream: {hint}", file=sys.stderr)
        case "add":
            _print_line(_added(client, options))
        case "audition":
            _audition(client, options)
        case "design":
            _print_line(client.ask("POST", _PATH, _described(options)))
        case "play":
            _hear(recordings.samples(client.fetch("GET", f"{_place(options.name)}/preview")))
        case "edit":
            facts = {
                "ref_text": options.text,
                "language": options.language,
                "speaker_description": options.description,
                "shared": options.shared,
            }
            _print_line(client.ask("POST", _place(options.name), facts))
        case "show":
            found = client.ask("GET", _place(options.name))
            print(json.dumps(found, indent=2, ensure_ascii=False))
        case "rename":
            _print_line(client.ask("POST", _place(options.name), {"name": options.new_name}))
        case "delete":
            print(client.ask("DELETE", _place(options.name))["id"])
        case "download":
            data = client.fetch("GET", f"{_place(options.name)}/download")
            if options.output == "-":
                sys.stdout.buffer.write(data)
            else:
                Path(options.output or f"{options.name}.flac").write_bytes(data)
        case "alias":
            path = f"{_ALIASES}/{quote(options.alias, safe='')}"
            client.ask("PUT", path, {"voice": options.name})
        case "unalias":
            client.ask("DELETE", f"{_ALIASES}/{quote(options.alias, safe='')}")
        case "consents":
            for consent in client.list(f"{_CONSENTS}?limit=100"):
                print("\t".join(str(consent[fact]) for fact in ("id", "name", "language")))
        case "consent":
            fields = {"name": options.name, "language": options.language}
            print(_sent(client, _CONSENTS, fields, "recording", options)["id"])
        case "withdraw":
            print(client.ask("DELETE", f"{_CONSENTS}/{quote(options.id, safe='')}")["id"])
        case _:
            _default(client, options)
    return 0


def _default(client: Client, options: argparse.Namespace) -> None:
    if options.none:
        client.ask("DELETE", _DEFAULT)
        return
    body = None if options.name is None else {"voice": options.name}
    voice = client.ask("GET" if body is None else "PUT", _DEFAULT, body)["voice"]
    if voice is not None:
        _print_line(voice)


def _described(options: argparse.Namespace) -> Mapping[str, Any]:
    return {
        "type": "prompt",
        "name": options.name,
        "prompt": options.description,
        "script_hint": options.say,
        "language": options.language,
        "seed": options.seed,
        "shared": options.shared or None,
    }


def _audition(client: Client, options: argparse.Namespace) -> None:
    """Have it spoken, and say by which seed `design` makes the same voice."""
    seed = random.randrange(1 << 31) if options.seed is None else options.seed
    body = {
        "model": "gpt-4o-mini-tts",
        "task_type": "VoiceDesign",
        "instructions": options.description,
        "input": options.say,
        "language": options.language,
        "seed": seed,
        "response_format": "pcm",
    }
    stated = {name: value for name, value in body.items() if value is not None}
    output = outputs.speakers() if options.output is None else outputs.File(options.output, True)
    with client.speech(stated) as (headers, pieces):
        rate_hz = int(headers.get("x-sample-rate") or _RATE_HZ)
        _hear(((rate_hz, piece) for piece in pieces), output)
    print(f"seed {seed}")


def _hear(audio: Iterator[tuple[int, bytes]], output: outputs.Output | None = None) -> None:
    output = output or outputs.speakers()
    try:
        for rate_hz, piece in audio:
            output.begin(rate_hz)
            output.write(piece)
        output.finish()
    except BaseException:
        output.abort()
        raise


def _added(client: Client, options: argparse.Namespace) -> Mapping[str, Any]:
    fields = {
        "name": options.name,
        "ref_text": options.text,
        "language": options.language,
        "speaker_description": options.description,
        "consent": options.consent,
        "shared": "true" if options.shared else None,
    }
    return _sent(client, _PATH, fields, "audio_sample", options)


def _sent(
    client: Client,
    path: str,
    fields: Mapping[str, str | None],
    name: str,
    options: argparse.Namespace,
) -> Mapping[str, Any]:
    """The answer to a form with a recording."""
    if options.recording is None:
        data = recordings.from_microphone(options.record)
    else:
        data = recordings.from_file(options.recording, options.begin_s, options.end_s)
    kind, body = _form({k: v for k, v in fields.items() if v}, name, data)
    return as_json(client.fetch("POST", path, body, kind))


def _form(fields: Mapping[str, str], name: str, data: bytes) -> tuple[str, bytes]:
    """The type and body of a form with a file."""
    boundary = secrets.token_hex(16)
    parts = [
        f'Content-Disposition: form-data; name="{field}"\r\n\r\n{value}'.encode()
        for field, value in fields.items()
    ]
    head = f'Content-Disposition: form-data; name="{name}"; filename="recording"\r\n\r\n'
    parts.append(head.encode() + data)
    begin = f"--{boundary}\r\n".encode()
    body = b"".join(begin + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", body


def _place(name: str) -> str:
    return f"{_PATH}/{quote(name, safe='')}"


def _print_line(voice: Mapping[str, Any]) -> None:
    facts = (voice.get("id"), voice.get("language"), voice.get("description"))
    print("\t".join([str(voice["name"]), *(str(fact) for fact in facts if fact)]))
