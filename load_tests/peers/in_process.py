"""Peers on the same checkpoint, one at a time: one stream, first audio and real-time factor.

    python load_tests/peers/in_process.py install WHEELS   # from the package registry, once
    PYTHONPATH=PEERS python load_tests/peers/in_process.py run --peer faster \\
        --checkpoint CKPT --frames 100                     # PEERS: the wheels, unpacked

Peers: `reference` (qwen-tts-hf, the reference package ported to transformers 5) and `faster`
(faster-qwen3-tts: CUDA graphs, one stream). Their code is installed, never copied. The checkpoint
must have an unreachable EOS (`serve_app.models.random_checkpoint --eos unreachable`), so that every
run makes the asked number of frames. Neither has a server; ours is measured in process as well
(`--peer ours`), and over HTTP by `python -m load_tests`.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps."
VOICE, LANGUAGE = "ryan", "English"
PACKAGES = ["faster-qwen3-tts==0.5.4", "qwen-tts-hf==0.1.1.post1"]
FRAME_S = 0.08
# What the peers import for other tasks than the one measured (25 Hz tokenizer, voice cloning,
# demo).
_UNUSED = [
    "torchaudio",
    "torchaudio.compliance",
    "torchaudio.compliance.kaldi",
    "librosa",
    "librosa.filters",
    "sox",
    "gradio",
    "soundfile",
]

# One run: asked frames -> (seconds to the first audio, seconds to the last)
Run = Callable[[int], tuple[float, float]]


def stub_unused_imports() -> None:
    """Empty modules for what is absent on the machine and not needed here."""
    # transformers looks for some of them and would take the empty ones for the real ones.
    from transformers import AutoModel, AutoProcessor, MimiConfig, MimiModel  # noqa: F401

    for name in _UNUSED:
        try:
            __import__(name)
        except Exception:
            module = types.ModuleType(name)
            module.__getattr__ = lambda _: None  # type: ignore[method-assign]
            module.__path__ = []  # type: ignore[attr-defined]
            module.__spec__ = types.SimpleNamespace(name=name, origin=None)  # type: ignore[assignment]
            sys.modules[name] = module


def keep_rope_theta() -> None:
    """transformers 5.17 moved rope_theta of Mimi's config, and the port's own "default" entry does
    not look there.
    """
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    def default_rope(config, device=None, seq_len=None, **_):
        theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        exponent = torch.arange(0, size, 2, dtype=torch.float32, device=device) / size
        return 1.0 / theta**exponent, 1.0

    ROPE_INIT_FUNCTIONS["default"] = default_rope


def reference(checkpoint: Path, chunk: int) -> Run:
    """The reference has no streaming: its first audio is its last."""
    stub_unused_imports()
    import qwen_tts

    keep_rope_theta()
    model = qwen_tts.Qwen3TTSModel.from_pretrained(
        str(checkpoint), dtype=torch.bfloat16, attn_implementation="sdpa", device_map="cuda"
    )

    def run(frames: int) -> tuple[float, float]:
        start = time.perf_counter()
        wavs, _ = model.generate_custom_voice(
            text=TEXT,
            speaker=VOICE,
            language=LANGUAGE,
            max_new_tokens=frames + 1,
            non_streaming_mode=False,
        )
        torch.cuda.synchronize()
        took = time.perf_counter() - start
        _check(len(wavs[0]), frames)
        return took, took

    return run


def faster(checkpoint: Path, chunk: int) -> Run:
    stub_unused_imports()
    import qwen_tts  # noqa: F401  before the patch: the port registers its own entry

    keep_rope_theta()
    from faster_qwen3_tts import FasterQwen3TTS

    model = FasterQwen3TTS.from_pretrained(str(checkpoint), max_seq_len=2048)

    def run(frames: int) -> tuple[float, float]:
        start, first, samples = time.perf_counter(), 0.0, 0
        for audio, _, _ in model.generate_custom_voice_streaming(
            TEXT, VOICE, LANGUAGE, max_new_tokens=frames, chunk_size=chunk, non_streaming_mode=False
        ):
            first = first or time.perf_counter() - start
            samples += len(audio)
        _check(samples, frames)
        return first, time.perf_counter() - start

    return run


@contextlib.contextmanager
def ours(checkpoint: Path, chunk: int) -> Iterator[Run]:
    """Talker, code predictor and speech decoder in this process, as in placement `fused`, without
    Serve.
    """
    from serve_app.config import AppConfig, SpeechDecoderConfig
    from serve_app.models.checkpoint.files import open_checkpoint
    from serve_app.models.fused.speech import FusedSpeech
    from serve_app.types import NamedVoice, SpeechRequest

    schedule = SpeechDecoderConfig().chunk_frames if chunk == 1 else (chunk,)
    config = AppConfig.model_validate(
        {
            "talker": {"max_num_seqs": 8, "max_model_len": 2048},
            "speech_decoder": {"max_streams": 8, "chunk_frames": schedule},
        }
    )
    speech = FusedSpeech.load(open_checkpoint(checkpoint), config, "cuda")

    async def speak(frames: int) -> tuple[float, float]:
        request = SpeechRequest(
            "peer", "peer", TEXT, NamedVoice(VOICE), "english", seed=0, streaming_text=True,
            min_new_tokens=frames, max_new_tokens=frames,
        )  # fmt: skip
        start, first, samples = time.perf_counter(), 0.0, 0
        async for item in speech.speak(request):
            first = first or time.perf_counter() - start
            samples += len(item.samples)
        _check(samples, frames)
        return first, time.perf_counter() - start

    with asyncio.Runner() as runner:
        yield lambda frames: runner.run(speak(frames))


def _check(samples: int, frames: int) -> None:
    """Peers may count the last frame differently (model spec 3.4); anything beyond one frame is
    another workload.
    """
    if abs(samples - frames * 1920) > 2 * 1920:
        raise SystemExit(f"{samples} samples are not {frames} frames")


def measure(run: Run, frames: int, repeats: int) -> dict[str, float]:
    for _ in range(3):
        run(min(frames, 30))
    times = [run(frames) for _ in range(repeats)]
    first, whole = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "first_audio_ms": 1000 * first,
        "rtf": whole / (frames * FRAME_S),
        "audio_s_per_s": frames * FRAME_S / whole,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    install = commands.add_parser("install", help="download the peers' wheels")
    install.add_argument("folder")
    go = commands.add_parser("run", help="measure one peer")
    go.add_argument("--peer", choices=["ours", "faster", "reference"], required=True)
    go.add_argument("--checkpoint", type=Path, required=True)
    go.add_argument("--frames", type=int, default=100)
    go.add_argument(
        "--chunk", type=int, default=1, help="frames per chunk, for the peers that stream"
    )
    go.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.command == "install":
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "-d", args.folder, *PACKAGES],
            check=True,
        )
        return
    if args.peer == "ours":
        with ours(args.checkpoint, args.chunk) as run:
            figures = measure(run, args.frames, args.repeats)
    else:
        run = {"faster": faster, "reference": reference}[args.peer](args.checkpoint, args.chunk)
        figures = measure(run, args.frames, args.repeats)
    print(
        json.dumps(
            {
                "peer": args.peer,
                "gpu": torch.cuda.get_device_name(),
                "frames": args.frames,
                "chunk": args.chunk,
                **figures,
            }
        ),
        flush=True,
    )
    # A process that used vLLM may hang at exit.
    import os

    os._exit(0)


if __name__ == "__main__":
    main()
