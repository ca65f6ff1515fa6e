"""A process that serves within so many GiB of a larger GPU, and prints what it took, as JSON.

Usage: memory_probe.py CHECKPOINT GIB. PyTorch's allocator is held to the limit, so that what does
not fit fails as it would on a card of that size.

memory_probe.py CHECKPOINT encoder: the same of a voice encoder, after the longest recording.
"""

import asyncio
import dataclasses
import json
import sys
from contextlib import aclosing
from pathlib import Path

import numpy as np
import torch

from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.kernel_cache.stages import started
from serve_app.models.memory.estimate import MIB, estimate
from serve_app.models.memory.presets import fitted
from serve_app.models.voice_encoder.stage import ClipEncoder
from serve_app.resumption import Resumed
from serve_app.types import PcmChunk
from tests.parity.engines import request

FRAMES = 60
# The context of the process is none of the allocator's.
CONTEXT = 650 * MIB


async def spoken(speak: Resumed[PcmChunk], count: int) -> None:
    async def one(index: int) -> None:
        asked = request("word " * 40, seed=index, max_new_tokens=FRAMES)
        async with aclosing(
            speak(dataclasses.replace(asked, request_id=f"r{index}"), None)
        ) as all_:
            async for _ in all_:
                pass

    await asyncio.gather(*map(one, range(count)))


def main(folder: Path, gib: float) -> None:
    checkpoint = open_checkpoint(folder)
    memory = int(gib * 2**30)
    given = AppConfig.model_validate({"profile": "auto", "placement": "fused", "device": "cuda"})
    config = fitted(given, checkpoint.spec, memory)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (memory - CONTEXT) / total))
    before = used_elsewhere()
    with started(checkpoint, config, "cuda") as speak:
        for _ in range(3):
            asyncio.run(spoken(speak, config.talker.max_num_seqs))
        free, total = torch.cuda.mem_get_info()
        took = total - free - before
        said = {
            "streams": config.talker.max_num_seqs,
            "took_mib": took // MIB,
            "reserved_mib": torch.cuda.max_memory_reserved() // MIB,
            "estimate_mib": estimate(config, checkpoint.spec).total // MIB,
            "parts_mib": {
                name: size // MIB for name, size in estimate(config, checkpoint.spec).parts.items()
            },
        }
    print(json.dumps(said), flush=True)


def encoder(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    config = AppConfig.model_validate({"device": "cuda", "voice_encoder": {"max_replicas": 1}})
    longest_s = config.ingress.voices.max_s
    assert checkpoint.spec.voice_encoder is not None
    rate_hz = checkpoint.spec.voice_encoder.speech.sample_rate_hz
    torch.zeros(1, device="cuda")
    before = used_elsewhere()
    loaded = ClipEncoder(checkpoint, "cuda")
    noise = 0.1 * np.random.default_rng(0).standard_normal(int(longest_s * rate_hz))
    for seconds in (3.0, 10.0, longest_s, longest_s):
        loaded.encode(noise[: int(seconds * rate_hz)].astype(np.float32))
    free, total = torch.cuda.mem_get_info()
    said = {
        "took_mib": (total - free - before) // MIB,
        "allocated_mib": torch.cuda.max_memory_allocated() // MIB,
        "reserved_mib": torch.cuda.max_memory_reserved() // MIB,
        "estimate_mib": estimate(config, checkpoint.spec, ["voice_encoder"]).total // MIB,
    }
    print(json.dumps(said), flush=True)


def used_elsewhere() -> int:
    """Bytes that other processes have; this one's context is there by now and is not counted."""
    free, total = torch.cuda.mem_get_info()
    return max(0, total - free - CONTEXT)


if __name__ == "__main__":
    if sys.argv[2] == "encoder":
        encoder(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), float(sys.argv[2]))
