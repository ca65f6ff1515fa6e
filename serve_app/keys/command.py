"""`python -m serve_app keys`: make, list and remove API keys.

A new key is shown once, on standard output, where a script can take it; the file has its digest.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from serve_app.config import Environment
from serve_app.keys import key_file
from serve_app.keys.digest import digest_of, make_key
from serve_app.keys.key_file import Key, KeyFileError

_DEFAULT: Final = "keys.yaml"


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (KeyFileError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


def _new(options: argparse.Namespace) -> int:
    key = sys.stdin.readline().strip() if options.stdin else make_key()
    if not key:
        raise KeyFileError("there is no key on standard input")
    entry = Key(
        name=options.name,
        hash=digest_of(key),
        requests_per_minute=options.requests_per_minute,
        concurrent=options.concurrent,
        priority=options.priority,
    )
    keys = _known(options.file)
    if any(entry.name == known.name for known in keys):
        raise KeyFileError(f"{options.file}: {entry.name!r} is there already; remove it first")
    key_file.write(options.file, (*keys, entry))
    print(
        f"{options.file}: added {entry.name!r}; the key, which is shown only now:", file=sys.stderr
    )
    if not options.stdin:
        print(key)
    return 0


def _hash(options: argparse.Namespace) -> int:
    del options
    key = sys.stdin.readline().strip()
    if not key:
        raise KeyFileError("there is no key on standard input")
    print(digest_of(key))
    return 0


def _list(options: argparse.Namespace) -> int:
    for key in key_file.read(options.file):
        rate = "-" if key.requests_per_minute is None else f"{key.requests_per_minute:g}/min"
        at_once = "-" if key.concurrent is None else f"{key.concurrent} at once"
        print(f"{key.name}\t{rate}\t{at_once}\tpriority {key.priority}\t{key.hash[:15]}...")
    return 0


def _remove(options: argparse.Namespace) -> int:
    keys = key_file.read(options.file)
    left = [key for key in keys if key.name != options.name]
    if len(left) == len(keys):
        raise KeyFileError(f"{options.file}: there is no {options.name!r}")
    key_file.write(options.file, left)
    print(f"{options.file}: removed {options.name!r}", file=sys.stderr)
    return 0


def _known(path: Path) -> tuple[Key, ...]:
    return key_file.read(path) if path.exists() else ()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app keys", description=__doc__)
    commands = parser.add_subparsers(required=True)
    default = Environment.read().api_keys_file or Path(_DEFAULT)
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument("--file", type=Path, default=default, help=f"default: {default}")
    new = commands.add_parser("new", parents=[file], help="make a key and add its digest")
    new.add_argument("name", help="what the log and the limits call it")
    new.add_argument("--requests-per-minute", type=float, metavar="N")
    new.add_argument("--concurrent", type=int, metavar="N", help="requests at once")
    new.add_argument("--priority", type=int, default=0, metavar="N", help="higher comes first")
    new.add_argument("--stdin", action="store_true", help="take the key from standard input")
    new.set_defaults(run=_new)
    digest = commands.add_parser("hash", help="the digest of a key on standard input")
    digest.set_defaults(run=_hash)
    shown = commands.add_parser("list", parents=[file], help="names, limits, starts of digests")
    shown.set_defaults(run=_list)
    remove = commands.add_parser("remove", parents=[file], help="a running server soon forgets it")
    remove.add_argument("name")
    remove.set_defaults(run=_remove)
    return parser
