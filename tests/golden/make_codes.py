"""Run the reference package and keep its greedy codes and one waveform: tests/golden/codes.npz.

    python -m tests.golden.make_codes

The reference needs about a tenth of a second per frame on one core, and cannot share a process with
vLLM (vLLM scans all imported modules and stumbles over some that the reference brings). The file
names the checkpoints by a hash of their weights, so that a test can tell when it is out of date.
"""

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch

from serve_app.models.random_checkpoint.write import write_checkpoint

FILE = Path(__file__).with_name("codes.npz")
FRAMES = 200
TEXT = "The quick brown fox jumps over 13 lazy dogs, and nobody minds at all."

CUSTOM_VOICE = [
    dict(text=TEXT, voice="ryan", language="english"),
    dict(text=TEXT, voice="ryan", language="english", streaming_text=True),
    dict(text="Bonjour tout le monde.", voice="vivian", language="french"),
    dict(text="Guten Tag!", voice="serena", language="german", instructions="Speak slowly."),
    dict(text="今天天气很好。", voice="dylan", language="auto", streaming_text=True),
    dict(text="我们去吃饭吧。", voice="eric", language="chinese", instructions="Happy!"),
    dict(text="おはようございます。", voice="ono_anna", language="japanese"),
    dict(text="안녕하세요 여러분", voice="sohee", language="korean", streaming_text=True),
]
VOICE_DESIGN = [
    dict(text=TEXT, voice=None, language="english", instructions="A deep, calm male voice."),
    dict(
        text="Hola!", voice=None, language="spanish", instructions="A child.", streaming_text=True
    ),
    dict(text="Ciao a tutti!", voice=None, language="auto", instructions=""),
]
# name -> (checkpoint variant, size, eos, cases)
SETS = {
    "custom_voice-1.7b-like": ("custom_voice", "tiny", "unreachable", CUSTOM_VOICE),
    "custom_voice-0.6b-like": ("custom_voice", "tiny-0b6", "unreachable", CUSTOM_VOICE[:5]),
    "voice_design": ("voice_design", "tiny", "unreachable", VOICE_DESIGN),
    "natural_end": (
        "custom_voice",
        "tiny",
        "natural",
        [
            dict(text=t, voice="ryan", language="english")
            for t in ("Hello there.", "One, two, three.", TEXT)
        ],
    ),
}

# The embedded checkpoint is the one of "natural_end": this stream is also compared from the running
# server.
WAVEFORM = ("natural_end", 1)


def weights_hash(checkpoint: Path) -> str:
    """SHA-256 of model.safetensors: what decides the codes."""
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def reference_runs(checkpoint: Path, cases: list[dict]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes int16 [T, Q], FRAMES frames where the EOS cannot be reached, and samples int16 [N] of
    each case.
    """
    from tests.parity.reference import Reference

    reference = Reference(checkpoint)
    runs = [
        reference.speak(
            case["text"],
            speaker=case["voice"],
            language=case["language"],
            instruct=case.get("instructions"),
            non_streaming_mode=not case.get("streaming_text", False),
            max_new_tokens=FRAMES + 1,  # it drops the last frame at the limit
        )
        for case in cases
    ]
    return [
        (run.codes.astype(np.int16), np.rint(run.wav.clip(-1, 1) * 32767).astype(np.int16))
        for run in runs
    ]


def main() -> None:
    torch.set_num_threads(1)
    arrays: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, (variant, size, eos, cases) in SETS.items():
            folder = Path(scratch, name)
            write_checkpoint(folder, size=size, variant=variant, eos=eos)
            arrays[f"{name}/weights"] = np.array(weights_hash(folder))
            for index, (codes, samples) in enumerate(reference_runs(folder, cases)):
                arrays[f"{name}/{index}"] = codes
                if (name, index) == WAVEFORM:
                    arrays["waveform"] = samples
                print(name, index, codes.shape, flush=True)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
