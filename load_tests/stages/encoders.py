"""How much audio the encoders of one ingress can make beside its event loop.

    python -m load_tests.stages.encoders --formats mp3 opus --threads 1 3

Threads that encode share Python's lock with the loop; one that asks for it often waits often. Each
thread encodes chunks of `--chunk-s` as fast as it can, while the main thread, in place of the loop,
works in Python for a while and sleeps for as long, over and over, or only sleeps (`idle`). `turns`
is how often per second it comes round: what the encoders take from it.
"""

import argparse
import sys
import threading
import time
from typing import Final

from load_tests.stages.signals import voice_like
from serve_app.audio.formats import AudioFormat
from serve_app.deployments.ingress import SWITCH_INTERVAL_S

_RATE_HZ: Final = 24000
_TURN_S: Final = 0.0003


def work_until(end_s: float) -> None:
    """Keep Python's lock as Python code does."""
    while time.perf_counter() < end_s:
        pass


def measure(
    audio_format: AudioFormat, threads: int, is_busy: bool, chunk_s: float, duration_s: float
) -> tuple[float, float]:
    """Seconds of audio per second, of all threads together, and turns of the loop per second."""
    samples = voice_like(chunk_s, _RATE_HZ)
    made, stop = [0] * threads, threading.Event()

    def encode(place: int) -> None:
        encoder = audio_format.encoder(_RATE_HZ)
        while not stop.is_set():
            encoder.encode(samples)
            made[place] += 1

    encoding = [threading.Thread(target=encode, args=(place,)) for place in range(threads)]
    for thread in encoding:
        thread.start()
    began_s, turns = time.perf_counter(), 0
    while (now_s := time.perf_counter()) < began_s + duration_s:
        if is_busy:
            work_until(now_s + _TURN_S)
        time.sleep(_TURN_S)
        turns += 1
    took_s = time.perf_counter() - began_s
    stop.set()
    for thread in encoding:
        thread.join()
    return sum(made) * chunk_s / took_s, turns / took_s


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    costly = [each for each in AudioFormat if each.cost]
    parser.add_argument(
        "--formats", nargs="+", type=AudioFormat, choices=tuple(AudioFormat), default=costly
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--chunk-s", type=float, default=0.96, help="12 frames, the server's")
    parser.add_argument("--duration-s", type=float, default=3.0, help="of each measurement")
    return parser.parse_args()


def main() -> None:
    args = parse()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    print("| format | threads | idle: audio-s/s | turns/s | busy: audio-s/s | turns/s |")
    print("|---|---:|---:|---:|---:|---:|")
    for audio_format in args.formats:
        for threads in args.threads:
            found = [
                f"{figure:,.0f}"
                for is_busy in (False, True)
                for figure in measure(audio_format, threads, is_busy, args.chunk_s, args.duration_s)
            ]
            print(f"| {audio_format} | {threads} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
