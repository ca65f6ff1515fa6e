"""`python -m serve_app.models.kernel_cache fill|record`: compile kernels before they are needed.

`fill` needs no GPU and belongs into the build of an image; `record` renews the lists that it works
from, on a GPU, after kernels or their launches have changed.
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serve_app.models.kernel_cache.ahead import marking, present
from serve_app.models.kernel_cache.fill import fill
from serve_app.models.kernel_cache.variants import known, read, write


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.models.kernel_cache", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    filling = commands.add_parser("fill", help="compile into Triton's cache (TRITON_CACHE_DIR)")
    filling.add_argument(
        "--capability",
        type=float,
        nargs="*",
        help="of the GPUs to compile for, such as 9.0; default: of those that are here",
    )
    filling.add_argument("--processes", type=int, help="default: one per CPU")
    filling.add_argument("--list", type=Path, nargs="*", help="default: those of the package")
    noting = commands.add_parser("record", help="list the kernels of one checkpoint, on a GPU")
    noting.add_argument("--checkpoint", required=True)
    noting.add_argument("--profile", choices=("latency", "balanced", "throughput"))
    noting.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def run_fill(args: argparse.Namespace) -> int:
    capabilities = [round(10 * c) for c in args.capability] if args.capability else present()
    if not capabilities:
        print("no GPU here: say which with --capability, such as 9.0", file=sys.stderr)
        return 2
    for capability in capabilities:
        began_s = time.monotonic()
        if args.list is not None:
            listed = [variant for file in args.list for variant in read(file)]
            done = fill(listed, capability, args.processes)
        else:
            with marking(capability):
                done = fill(known(), capability, args.processes)
        print(
            f"compute capability {capability / 10:g}: {done.compiled} compiled, {done.found} there"
            f" before, {done.failed} not possible, {time.monotonic() - began_s:.0f} s"
        )
    return 0


def run_record(args: argparse.Namespace) -> int:
    from serve_app.config import AppConfig
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.fused.speech import FusedSpeech
    from serve_app.models.kernel_cache.record import recording

    config = AppConfig(profile=args.profile) if args.profile else AppConfig()
    with recording() as found:
        speech = FusedSpeech.load(open_checkpoint(Path(args.checkpoint)), config, "cuda")
        speech.close()
    write(args.out, found)
    print(f"{len(found)} variants in {args.out}")
    return 0


def main(arguments: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING)
    args = parse(arguments)
    return run_fill(args) if args.command == "fill" else run_record(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
