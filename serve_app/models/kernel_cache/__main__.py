"""`python -m serve_app.models.kernel_cache fill|check|record`: kernels before they are needed.

`fill` needs no GPU and belongs into the build of an image; `record` renews the lists that it works
from, on a GPU, after kernels or their launches have changed; `check` says if all fit a card.
"""

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from serve_app.models.kernel_cache.absent_gpu import SHARED_BYTES
from serve_app.models.kernel_cache.ahead import marking, present
from serve_app.models.kernel_cache.cards import check, table
from serve_app.models.kernel_cache.fill import fill
from serve_app.models.kernel_cache.variants import (
    LISTS,
    Variant,
    known,
    read,
    recorded_with,
    versions,
    write,
)

# Triton compiles for these; what it does not know ends its process. Whether all fits is checked for
# those whose shared memory is known.
COMPILED_FOR: Final = frozenset({*SHARED_BYTES, 87, 103, 110, 121})


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
    checking = commands.add_parser("check", help="whether every kernel fits a card; needs no GPU")
    checking.add_argument(
        "--capability",
        type=float,
        nargs="+",
        default=[capability / 10 for capability in SHARED_BYTES],
    )
    checking.add_argument("--processes", type=int, help="default: one per CPU")
    noting = commands.add_parser("record", help="list the kernels of one checkpoint, on a GPU")
    noting.add_argument("--checkpoint", required=True, type=Path, help="folder")
    noting.add_argument("--placement", choices=("fused", "split"), default="fused")
    noting.add_argument("--profile", choices=("latency", "balanced", "throughput"))
    noting.add_argument("--deterministic", action="store_true")
    noting.add_argument("--out", type=Path, required=True)
    return parser.parse_args(arguments)


def run_fill(args: argparse.Namespace, find: Callable[[], list[int]] = present) -> int:
    wanted = [round(10 * c) for c in args.capability] if args.capability else find()
    if not wanted:
        print("no GPU here: say which with --capability, such as 9.0", file=sys.stderr)
        return 2
    capabilities = [c for c in wanted if c in COMPILED_FOR]
    if capabilities != wanted:
        # A GPU that is here beside others is no fault of the command line.
        others = [c for c in wanted if c not in COMPILED_FOR]
        print(f"nothing compiles for {_text(others)}; for {_text(COMPILED_FOR)}", file=sys.stderr)
        if args.capability or not capabilities:
            return 2
    if args.capability:
        # Where there is no GPU, vLLM has plain functions in place of its kernels, unless this says
        # that one may come later.
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    _tell_other_versions(args.list or sorted(LISTS.glob("*.jsonl")))
    is_filled = True
    for capability in capabilities:
        if args.list is not None:
            listed = [variant for file in args.list for variant in read(file)]
            is_filled &= _fill(listed, capability, args.processes)
            continue
        with marking(capability) as is_new:
            if is_new:
                is_filled &= _fill(known(), capability, args.processes)
            else:
                print(f"compute capability {_text([capability])}: filled before")
    return 0 if is_filled else 1


def _text(capabilities: Iterable[int]) -> str:
    return ", ".join(f"{capability / 10:.1f}" for capability in sorted(capabilities))


def _fill(variants: Sequence[Variant], capability: int, processes: int | None) -> bool:
    """Whether the cache has anything of them now."""
    began_s = time.monotonic()
    done = fill(variants, capability, processes)
    print(
        f"compute capability {_text([capability])}: {done.compiled} compiled, {done.found} there"
        f" before, {done.failed} not possible, {time.monotonic() - began_s:.0f} s"
    )
    return not variants or done.compiled + done.found > 0


def _tell_other_versions(lists: Sequence[Path]) -> None:
    """What does not fit any more fails below, one by one; this is why."""
    here = versions()
    for file in lists:
        there = recorded_with(file)
        other = [f"{name} {v} (here: {here[name]})" for name, v in there.items() if v != here[name]]
        if other:
            print(f"{file.name} was recorded with {', '.join(other)}: it may not be complete")


def run_check(args: argparse.Namespace) -> int:
    capabilities = [round(10 * c) for c in args.capability]
    unknown = [c for c in capabilities if c not in SHARED_BYTES]
    if unknown:
        print(f"not known: {_text(unknown)}; known: {_text(SHARED_BYTES)}", file=sys.stderr)
        return 2
    reports = check(capabilities, thorough=True, processes=args.processes)
    print(table(reports))
    return int(any(report.problems for report in reports))


def run_record(args: argparse.Namespace) -> int:
    from serve_app.config import AppConfig
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.kernel_cache.record import recording
    from serve_app.models.kernel_cache.stages import started

    config = AppConfig(
        placement=args.placement,
        profile=args.profile or AppConfig().profile,
        deterministic=args.deterministic,
    ).resolved()
    with recording() as found, started(open_checkpoint(args.checkpoint), config, "cuda"):
        write(args.out, found)
        print(f"{len(found)} variants in {args.out}", flush=True)
        # At once: the list is there, and vLLM's own end may hang.
        os._exit(0)


def main(arguments: Sequence[str]) -> int:
    logging.basicConfig(level=logging.WARNING)
    args = parse(arguments)
    commands = {"fill": run_fill, "check": run_check, "record": run_record}
    return commands[args.command](args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
