"""Talker and code predictor in two processes, as in placement `split`, without Serve between them.

    python -m load_tests.stages.split --size 1.7b --streams 1 16 64

Says what a step of the talker takes with the predictor at the other end of the channel, and how
long a request waits for its first frame. Beside it the same talker with the predictor inside.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from load_tests.reports import circumstances, files
from load_tests.stages.in_process import add_options, checkpoint_of, request, settings_for
from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import Checkpoint, open_checkpoint
from serve_app.models.code_predictor.channel.client import RemoteFrames
from serve_app.models.code_predictor.channel.contract import FrameClient, FrameEndpoint
from serve_app.models.code_predictor.channel.in_process import InProcessFrames
from serve_app.models.talker.engine import VllmTalker

_MODEL_LEN = 2048


@dataclass(frozen=True, slots=True)
class Row:
    """transport: of the channel; "inside" without one. step_ms: mean over the steady part."""

    transport: str
    streams: int
    step_ms: float
    first_ms_p50: float

    def text(self) -> str:
        return (
            f"| {self.transport} | {self.streams} | {self.step_ms:.2f} | {self.first_ms_p50:.1f} |"
        )


class One:
    """`FrameSessions` of one predictor."""

    is_over = False

    def __init__(self, endpoint: FrameEndpoint) -> None:
        self._endpoint = endpoint

    def connect(self, node: str) -> FrameEndpoint:
        return self._endpoint


def serve_frames(folder: Path, config: AppConfig, device: str, owner: Connection) -> None:
    """A predictor in this process, until `owner` closes."""
    from serve_app.models.split import ready_predictor

    with ready_predictor(open_checkpoint(folder), config, device).serve() as server:
        owner.send(server.endpoint())
        try:
            owner.recv()
        except EOFError:
            return


@contextmanager
def remote(checkpoint: Checkpoint, config: AppConfig, device: str) -> Iterator[RemoteFrames]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (checkpoint.path, config, device, theirs)
    process = context.Process(target=serve_frames, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        yield RemoteFrames(
            One(ours.recv()),
            num_code_groups=checkpoint.spec.talker.num_code_groups,
            max_rows=config.talker.max_num_seqs,
            channel=config.code_predictor.channel,
        )
    finally:
        ours.close()
        process.join(10)
        process.kill()


def measure(
    checkpoint: Checkpoint,
    config: AppConfig,
    device: str,
    frames: FrameClient,
    args: argparse.Namespace,
) -> Iterator[Row]:
    chunks = config.speech_decoder.chunk_frames
    talker = VllmTalker(checkpoint, config.talker, device, frames, chunks)
    try:
        if device == "cuda":
            talker.rehearse()
        for streams in args.streams:
            step_s, first_s = asyncio.run(together(talker, streams, args.frames))
            transport = getattr(frames, "transport", "inside")
            yield Row(transport, streams, 1000 * step_s, 1000 * statistics.median(first_s))
    finally:
        talker.close()


async def together(talker: VllmTalker, streams: int, frames: int) -> tuple[float, list[float]]:
    """Seconds per step while all streams run, and seconds until the first frame of each."""
    began_s, first_s, ended = time.perf_counter(), list[float](), list[tuple[float, float]]()
    running = (0.0, 0.0)

    def now() -> tuple[float, float]:
        return time.perf_counter(), talker.stats()["steps"]

    async def one(index: int) -> None:
        nonlocal running
        is_first = True
        async with aclosing(talker.frames(request(index, frames))) as items:
            async for _ in items:
                if is_first:
                    first_s.append(time.perf_counter() - began_s)
                    is_first, running = False, now()
        ended.append(now())

    await asyncio.gather(*map(one, range(streams)))
    (end_s, end_steps), (start_s, start_steps) = ended[0], running
    return (end_s - start_s) / (end_steps - start_steps), first_s


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m load_tests.stages.split", description=__doc__)
    add_options(parser)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--no-inside", action="store_true", help="the two processes only")
    args = parser.parse_args(arguments)
    checkpoint = checkpoint_of(args)
    config = settings_for(max(args.streams), _MODEL_LEN)
    config = config.model_copy(update={"placement": "split"})
    print("| channel | streams | step ms | first frame ms, p50 |\n|---|---|---|---|", flush=True)
    rows: list[Row] = []
    with remote(checkpoint, config, args.device) as frames:
        for row in measure(checkpoint, config, args.device, frames, args):
            rows.append(row)
            print(row.text(), flush=True)
    if not args.no_inside:
        inside = InProcessFrames.load(checkpoint, config.code_predictor, args.device)
        for row in measure(checkpoint, config, args.device, inside, args):
            rows.append(row)
            print(row.text(), flush=True)
    if args.out:
        facts = circumstances.environment(args.commit)
        files.write_json(args.out, {"facts": facts, "rows": [asdict(row) for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
