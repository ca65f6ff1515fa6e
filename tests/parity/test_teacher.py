"""The teacher's network says what the graph in its file says.

Needs `onnx`, `onnxruntime`, and in TEACHER a folder with `kokoro-v1.0.int8.onnx` and `voices/`.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from training.sentences.phonemes import ids_of
from training.teacher import Kokoro, load

FOLDER = Path(os.environ.get("TEACHER", "no folder"))
FILE = FOLDER / "kokoro-v1.0.int8.onnx"
SPOKEN = (("am_michael", "jˈɛs."), ("bf_emma", "ðə tɹˈAn lˈiːvz ɐt tˈɛn."))

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="TEACHER names no folder with the file")


@pytest.fixture(scope="module")
def network() -> Kokoro:
    pytest.importorskip("onnx")
    return load(FILE, "cpu")


def sentence(voice: str, letters: str) -> tuple[list[int], np.ndarray]:
    ids = ids_of(letters)
    table = np.fromfile(FOLDER / "voices" / f"{voice}.bin", "<f4").reshape(-1, 256)
    return ids, table[len(ids) - 1]


def by_graph(ids: list[int], style: np.ndarray) -> np.ndarray:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(FILE), providers=["CPUExecutionProvider"])
    feed = {
        "tokens": np.array([[0, *ids, 0]], np.int64),
        "style": style[None],
        "speed": np.ones(1, np.float32),
    }
    return session.run(None, feed)[0].ravel()


def alike(one: np.ndarray, other: np.ndarray) -> float:
    """How two spectrograms correlate, down to 60 dB below the loudest."""
    spectra = [
        torch.stft(
            torch.tensor(samples), 512, 128, window=torch.hann_window(512), return_complex=True
        ).abs()
        for samples in (one, other)
    ]
    floor = 1e-3 * float(spectra[1].max())
    return float(np.corrcoef([s.clamp(min=floor).log().flatten().numpy() for s in spectra])[0, 1])


@torch.inference_mode()
def test_a_batch_says_what_the_graph_says_of_each(network: Kokoro) -> None:
    given = [sentence(*one) for one in SPOKEN]
    tokens = [torch.tensor([0, *ids, 0]) for ids, _ in given]
    readings = network.read(tokens, torch.from_numpy(np.stack([style for _, style in given])))
    audio = network.speak(readings, max(reading.length for reading in readings) + 2)
    for row, reading, (ids, style) in zip(audio, readings, given, strict=True):
        expected = by_graph(ids, style)
        heard = row[: 600 * reading.length].numpy()
        assert len(heard) == len(expected)
        # The graph rounds activations to 8 bits, so that its melody, and with it the phase, drifts.
        assert alike(heard, expected) > 0.95
        assert heard.std() == pytest.approx(expected.std(), rel=0.1)
