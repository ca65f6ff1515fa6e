"""A process that serves within so many GiB of a larger GPU, and prints what it took, as JSON.

Usage: memory_probe.py CHECKPOINT GIB. PyTorch's allocator is held to the limit, so that what does
not fit fails as it would on a card of that size.

memory_probe.py CHECKPOINT encoder: the same of a voice encoder, after the longest recording.

memory_probe.py CHECKPOINT steps: what steps of the speech decoder take by themselves, without
graphs: activations, and the workspaces of what cuDNN guesses to be fast.
"""

import asyncio
import dataclasses
import json
import sys
from collections import Counter, defaultdict
from contextlib import aclosing
from pathlib import Path

import numpy as np
import torch

from serve_app.config import AppConfig
from serve_app.models.checkpoint.files import open_checkpoint
from serve_app.models.device import allow_tf32, resolve_device
from serve_app.models.kernel_cache.stages import started
from serve_app.models.memory.decoder_steps import largest_step, step_rows
from serve_app.models.memory.estimate import MIB, estimate
from serve_app.models.memory.presets import fitted
from serve_app.models.speech_decoder.network.model import SpeechDecoderModel
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
        took = used() - before
        said = {
            "streams": config.talker.max_num_seqs,
            "took_mib": took // MIB,
            "reserved_mib": torch.cuda.max_memory_reserved() // MIB,
            # Context, modules, graphs, and what kernels have for their threads.
            "outside_mib": (took - torch.cuda.memory_reserved()) // MIB,
            "pools_mib": pools(),
            "estimate_mib": estimate(config, checkpoint.spec).total // MIB,
            "parts_mib": {
                name: size // MIB for name, size in estimate(config, checkpoint.spec).parts.items()
            },
        }
        torch.cuda.empty_cache()
        # Fragments and what was called before a capture: a card that is full would get it back.
        said["given_back_mib"] = (before + took - used()) // MIB
    print(json.dumps(said), flush=True)


def pools() -> dict[str, dict[str, int]]:
    """What PyTorch's allocator holds and uses, by pool: one of all that is called, and those that
    graphs are captured into.
    """
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for segment in torch.cuda.memory_snapshot():
        pool = tuple(segment.get("segment_pool_id", (0, 0)))
        name = "called" if pool == (0, 0) else f"graphs {pool}"
        found[name]["reserved"] += segment["total_size"]
        found[name]["used"] += segment["allocated_size"]
        found[name]["segments"] += 1
    return {
        name: {what: n if what == "segments" else n // MIB for what, n in counts.items()}
        for name, counts in found.items()
    }


def steps(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    spec, config = checkpoint.spec.speech_decoder, AppConfig.model_validate({"device": "cuda"})
    dtype = resolve_device("cuda", config.speech_decoder.dtype).dtype
    allow_tf32(True)
    model = SpeechDecoderModel(spec).load(
        checkpoint.speech_tokenizer_tensors("decoder."), dtype, torch.device("cuda")
    )
    took: dict[str, int] = {}
    decoder = config.speech_decoder
    for size in sorted({1, *decoder.chunk_frames}):
        for rows in step_rows(spec, dtype.itemsize, size, decoder.batch_sizes, decoder.max_streams):
            codes = torch.zeros(rows, spec.num_code_groups, size, dtype=torch.int64, device="cuda")
            state = model.new_state(rows)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            model.decode(codes, state)
            took[f"{rows}x{size}"] = (torch.cuda.max_memory_allocated() - before) // MIB
    said = {
        "took_mib": took,
        "largest_frames": largest_step(spec, dtype.itemsize, decoder),
        "estimate_mib": estimate(config, checkpoint.spec, ["speech_decoder"]).parts["workspaces"]
        // MIB,
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
    said = {
        "took_mib": (used() - before) // MIB,
        "allocated_mib": torch.cuda.max_memory_allocated() // MIB,
        "reserved_mib": torch.cuda.max_memory_reserved() // MIB,
        "estimate_mib": estimate(config, checkpoint.spec, ["voice_encoder"]).total // MIB,
    }
    print(json.dumps(said), flush=True)


def used_elsewhere() -> int:
    """Bytes that other processes have; this one's context is there by now and is not counted."""
    return max(0, used() - CONTEXT)


def used() -> int:
    """Bytes that are taken of the device."""
    free, total = torch.cuda.mem_get_info()
    return total - free


if __name__ == "__main__":
    if sys.argv[2] == "encoder":
        encoder(Path(sys.argv[1]))
    elif sys.argv[2] == "steps":
        steps(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), float(sys.argv[2]))
