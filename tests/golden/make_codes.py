"""Run the reference package and keep its greedy codes and one waveform: tests/golden/codes.npz.

    python -m tests.golden.make_codes [SET...]

With names, only these sets are made again.
The reference needs about a tenth of a second per frame on one core, and cannot share a process with
vLLM (vLLM scans all imported modules and stumbles over some that the reference brings). The file
names the checkpoints by a hash of their weights, so that a test can tell when it is out of date.
"""

import hashlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from serve_app.models.checkpoint.embedded import embedded_checkpoint
from serve_app.models.random_checkpoint.write import write_checkpoint
from tests.parity.clips import recording

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
SAID = "A short recording, made by a formula."
# `clone`: seed and samples of tests.parity.clips.recording; `said`: its text, in context.
BASE = [
    dict(text=TEXT, clone=(1, 60_000), language="english"),
    dict(text=TEXT, clone=(1, 60_000), language="auto", streaming_text=True),
    dict(text=TEXT, clone=(2, 70_000), said=SAID, language="english", streaming_text=True),
    dict(
        text="今天天气很好。", clone=(3, 90_000), said=SAID, language="chinese", streaming_text=True
    ),
    dict(text="Guten Tag!", clone=(2, 70_000), said=SAID, language="german"),
    dict(text="Доброе утро!", clone=(4, 30_000), said="你好。", language="russian"),
]
EMBEDDED = [
    dict(text="Good morning!", voice="heart", language="english"),
    dict(text="The train leaves at 10:30 from platform 4.", voice="daniel", language="english"),
    dict(text=TEXT, voice="emma", language="english", streaming_text=True),
    dict(text="Did anyone see where I left my keys?", voice="michael", language="auto"),
]
# name -> (checkpoint variant, size, eos, cases); the embedded one is not written
SETS = {
    "custom_voice-1.7b-like": ("custom_voice", "tiny", "unreachable", CUSTOM_VOICE),
    "custom_voice-0.6b-like": ("custom_voice", "tiny-0b6", "unreachable", CUSTOM_VOICE[:5]),
    "voice_design": ("voice_design", "tiny", "unreachable", VOICE_DESIGN),
    "base-1.7b-like": ("base", "tiny", "unreachable", BASE),
    "base-0.6b-like": ("base", "tiny-0b6", "unreachable", BASE[1:4]),
    "natural_end": (
        "custom_voice",
        "tiny",
        "natural",
        [
            dict(text=t, voice="ryan", language="english")
            for t in ("Hello there.", "One, two, three.", TEXT)
        ],
    ),
    "embedded": ("embedded", "", "natural", EMBEDDED),
}

# This stream is also compared from the running server.
WAVEFORM = ("embedded", 1)


def weights_hash(checkpoint: Path) -> str:
    """SHA-256 of model.safetensors: what decides the codes."""
    return hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()


def reference_runs(checkpoint: Path, cases: list[dict]) -> list[dict[str, np.ndarray]]:
    """Of each case: codes int16 [T, Q], FRAMES frames where the EOS cannot be reached; samples
    int16 [N]; of a clone also its vector float32 [H] and the codes of its recording.
    """
    from tests.parity.reference import Reference

    reference = Reference(checkpoint)
    runs: list[dict[str, np.ndarray]] = []
    for case in cases:
        made, cloned = {}, None
        if "clone" in case:
            seed, length = case["clone"]
            cloned = reference.clone(recording(length, seed), case.get("said"))
            made["vector"] = cloned.ref_spk_embedding.numpy()
            if cloned.ref_code is not None:
                made["recording"] = cloned.ref_code.numpy().astype(np.int16)
        run = reference.speak(
            case["text"],
            speaker=case.get("voice"),
            cloned=cloned,
            language=case["language"],
            instruct=case.get("instructions"),
            non_streaming_mode=not case.get("streaming_text", False),
            max_new_tokens=FRAMES + 1,  # it drops the last frame at the limit
        )
        made["codes"] = run.codes.astype(np.int16)
        made["samples"] = np.rint(run.wav.clip(-1, 1) * 32767).astype(np.int16)
        runs.append(made)
    return runs


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(SETS)
    arrays: dict[str, np.ndarray] = dict(np.load(FILE)) if FILE.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in wanted:
            variant, size, eos, cases = SETS[name]
            if variant == "embedded":
                folder = embedded_checkpoint()
            else:
                folder = Path(scratch, name)
                write_checkpoint(folder, size=size, variant=variant, eos=eos)
            arrays[f"{name}/weights"] = np.array(weights_hash(folder))
            for index, made in enumerate(reference_runs(folder, cases)):
                arrays[f"{name}/{index}"] = made["codes"]
                for part in ("vector", "recording"):
                    if part in made:
                        arrays[f"{name}/{index}/{part}"] = made[part]
                if (name, index) == WAVEFORM:
                    arrays["waveform"] = made["samples"]
                print(name, index, made["codes"].shape, flush=True)
    np.savez_compressed(FILE, **arrays)


if __name__ == "__main__":
    main()
