"""The whole benchmark of one GPU: `python -m load_tests.bench --out FOLDER`.

Runs every part as a process of its own, keeps its result in FOLDER, and writes FOLDER/report.md
with plots. What is done is not done again, and what `--budget-s` cut off goes on in the next call.
"""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from load_tests.jobs import PARTS, Job, Missing, Store, plan, run
from load_tests.reports import circumstances
from load_tests.reports.bench_report import compose
from load_tests.servers.child import say, unpacked, write_checkpoint
from load_tests.servers.settings import CONFIGS

# Exit statuses besides 0: a part failed; a part is not done yet.
FAILED, UNFINISHED = 1, 3


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m load_tests.bench", description=__doc__)
    parts = (*PARTS, "report")
    parser.add_argument("--out", type=Path, required=True, help="folder of results and report")
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--sizes", nargs="+", choices=("1.7b", "0.6b"), default=["1.7b", "0.6b"])
    parser.add_argument(
        "--placements", nargs="+", choices=tuple(CONFIGS), default=["fused", "split"]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of open loops")
    parser.add_argument("--budget-s", type=float, default=560.0, help="for this call")
    parser.add_argument("--again", action="store_true", help="repeat these parts even if done")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path(tempfile.gettempdir()) / "ttsb-checkpoints",
        help="folder of the random checkpoints, written once, and of compilers' caches",
    )
    parser.add_argument(
        "--peers", type=Path, help="folder of `load_tests/peers/in_process.py install`"
    )
    parser.add_argument("--commit", help="what to report where there is no git repository")
    frame = parser.add_argument_group("parts frame and predictor")
    frame.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16, 32, 64, 128, 256])
    http = parser.add_argument_group("parts http, startup and memory")
    http.add_argument("--capacity", type=int, default=256, help="streams per replica; not memory")
    http.add_argument(
        "--burst", type=int, nargs="*", default=[16, 64, 128], help="requests at once"
    )
    http.add_argument("--closed", type=int, nargs="*", default=[1, 16, 64, 256], help="streams")
    http.add_argument(
        "--open", type=float, nargs="*", default=[5, 20, 40, 60, 80, 100], help="requests/s"
    )
    http.add_argument("--duration", type=float, default=5.0, help="s, of each open level and seed")
    http.add_argument("--warm-up", type=float, default=2.0, help="s, before each of them")
    http.add_argument(
        "--settle", type=float, help="as of load_tests.serve_bench, whose default it has"
    )
    http.add_argument("--frames", default="60", help="codec frames of a request; see load_tests")
    http.add_argument("--override", action="append", default=[], metavar="[PLACEMENT:]KEY=VALUE")
    http.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    http.add_argument("--port", type=int, default=8000)
    args = parser.parse_args(arguments)
    # Parts run in folders of their own choosing.
    args.checkpoints = args.checkpoints.resolve()
    args.out = args.out.resolve()
    return args


def run_all(args: argparse.Namespace, jobs: Sequence[Job], store: Store) -> dict[str, Missing]:
    """Run what is not done yet; what is missing afterwards, by the name of the job."""
    deadline_s = time.monotonic() + args.budget_s
    missing: dict[str, Missing] = {}
    for job in jobs:
        if args.again:
            store.forget(job)
        if store.is_done(job):
            say(f"{job.name}: done before")
            continue
        if job.size is not None and not (args.checkpoints / job.size).exists():
            device = "cuda" if circumstances.gpus() else "cpu"
            write_checkpoint(args.checkpoints / job.size, job.size, device)
        began_s = time.monotonic()
        left_s = deadline_s - began_s
        if left_s < job.needs_s:
            text = f"not begun: needs {job.needs_s:.0f} s, {left_s:.0f} s were left"
            lack: Missing | None = Missing(text, goes_on=True)
        else:
            say(f"{job.name}: {' '.join(job.arguments)}")
            lack = run(job, store, deadline_s, args.commit)
        if lack is not None:
            missing[job.name] = lack
        said = "done" if lack is None else lack.reason
        say(f"{job.name}: {said}, {time.monotonic() - began_s:.0f} s")
    return missing


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    store = Store(args.out)
    if args.peers is not None:
        args.peers = unpacked(args.peers, args.checkpoints / "peers")
    jobs = list(plan(args, args.parts))
    missing = run_all(args, jobs, store)
    if "report" in args.parts:
        compose(args.out, store.all(), absent(args, store, missing))
        say(f"report: {args.out / 'report.md'}")
    if not missing:
        return 0
    return UNFINISHED if all(lack.goes_on for lack in missing.values()) else FAILED


def absent(
    args: argparse.Namespace, store: Store, missing: Mapping[str, Missing]
) -> dict[str, str]:
    """Why jobs have no whole result, also those of parts that this call did not ask for."""
    reasons = {job.name: "not run" for job in plan(args, PARTS) if not store.is_done(job)}
    if args.peers is None and not any(name.startswith("peers") for name in store.all()):
        reasons["peers"] = "left out, no --peers"
    return {**reasons, **{name: lack.reason for name, lack in missing.items()}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
