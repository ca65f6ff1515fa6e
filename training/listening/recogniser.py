"""An independent recogniser of English speech: moonshine tiny-en, by onnxruntime alone.

Its files come with the package moonshine-voice before 0.1 (`pip install 'moonshine-voice<0.1'`, MIT
licence), which is not imported: it wants a sound card.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np

RATE_HZ: Final = 16_000
_PACKAGE: Final = "moonshine_voice"
_START, _END = 1, 2
_SPECIAL_TOKENS: Final = 768  # the last of the vocabulary; they stand for no letters
_TOKENS_PER_S: Final = 6.5
_SPACE: Final = "\u2581".encode()


def shipped_model() -> Path | None:
    """Return the folder of the model in the installed package; None where there is none."""
    spec = find_spec(_PACKAGE)
    for place in spec.submodule_search_locations or () if spec else ():
        folder = Path(place, "assets/tiny-en")
        if (folder / "encoder_model.ort").is_file():
            return folder
    return None


class Recogniser:
    """Hears one clip at a time, the likeliest word each time."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1

        def session(name: str) -> Any:
            file = str(folder / f"{name}.ort")
            return onnxruntime.InferenceSession(file, options, ["CPUExecutionProvider"])

        self._encoder, self._decoder = session("encoder_model"), session("decoder_model_merged")
        self._vocabulary = _vocabulary((folder / "tokenizer.bin").read_bytes())
        past = [i for i in self._decoder.get_inputs() if i.name.startswith("past_key_values")]
        self._past = [each.name for each in past]
        _, heads, _, width = past[0].shape
        self._nothing = np.zeros((0, heads, 1, width), np.float32)

    def hear(self, samples: np.ndarray) -> str:
        """Return the words in float32 [N] at 16 kHz."""
        audio = np.pad(samples, (0, RATE_HZ // 2))[None].astype(np.float32)
        mask = np.ones(audio.shape, np.int64)
        (hidden,) = self._encoder.run(None, {"input_values": audio, "attention_mask": mask})
        feed = dict.fromkeys(self._past, self._nothing)
        feed |= {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
        tokens = [_START]
        for step in range(int(audio.size / RATE_HZ * _TOKENS_PER_S) + 8):
            feed["input_ids"] = np.array([tokens[-1:]], np.int64)
            feed["use_cache_branch"] = np.array([step > 0])
            logits, *present = self._decoder.run(None, feed)
            # What it made of the sound stays as the first step gave it.
            for name, value in zip(self._past, present, strict=True):
                if step == 0 or ".decoder." in name:
                    feed[name] = value
            tokens.append(int(logits[0, -1].argmax()))
            if tokens[-1] == _END:
                break
        most = len(self._vocabulary) - _SPECIAL_TOKENS
        pieces = b"".join(self._vocabulary[token] for token in tokens if _END < token < most)
        return pieces.replace(_SPACE, b" ").decode("utf-8", "ignore").strip()


def _vocabulary(data: bytes) -> list[bytes]:
    """Read strings, each behind its length: 7 bits in a byte, or 14 in two, the low ones first."""
    at, found = 0, []
    while at < len(data):
        size, at = data[at], at + 1
        if size >= 128:
            size, at = size - 128 + 128 * data[at], at + 1
        found.append(data[at : at + size])
        at += size
    return found
