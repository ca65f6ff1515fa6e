"""The weights in the teacher's ONNX file, by the names that they have in `network.Kokoro`.

The file holds 8-bit weights, and quantises activations on the way, which GPU runtimes do badly.
Only its weights are read here, as floats; the graph around them is that of `network`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

# Nodes are named by modules, `/encoder/text_encoder/cnn.0/cnn.0.1/...`; constants as in training.
_RENAMED: Final = (
    (r"^encoder\.(F0|N|shared|F0_proj|N_proj)\b", r"predictor.\1"),
    (r"^encoder\.", ""),
    (r"^decoder\.decoder\.", "decoder."),
    (r"^bert\.(embeddings\.|encoder\.(?!albert))", "bert."),
    (r"^bert\.encoder\.albert_layer_groups\.0\.albert_layers\.0\.", "bert.layer."),
    (r"\.(stft\.istft\.stft\.)", "."),
    (r"\.linear_layer\.", "."),
    (r"\.asr_res\.0\.", ".asr_res."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
)
_GATES: Final = (0, 2, 3, 1)


class Weights:
    """A file's constants.

    Args:
        file: `kokoro-v1.0.int8.onnx`.
    """

    def __init__(self, file: Path) -> None:
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

        graph = onnx.load(str(file)).graph
        self._nodes = list(graph.node)
        self._constants: dict[str, np.ndarray] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer
        }

    def state(self) -> dict[str, Tensor]:
        """Return float32 tensors by name; the file repeats some under names that nothing has."""
        found = {
            _renamed(name): value
            for name, value in self._constants.items()
            if name.startswith(("encoder.", "decoder.")) and value.dtype == np.float32
        }
        for node in self._nodes:
            found.update(self._of(node))
        return {name: torch.from_numpy(value.copy()) for name, value in found.items()}

    def _of(self, node: Any) -> Iterator[tuple[str, np.ndarray]]:
        module = _module(node.name)
        match node.op_type:
            case "ConvInteger" | "MatMulInteger":
                weight, zero = node.input[1], node.input[3]
                scale = weight.removesuffix("_quantized") + "_scale"
                value = self._float(weight, zero, scale, of_conv=node.op_type[0] == "C")
                yield _renamed(f"{module}.weight"), value
            case "DequantizeLinear":
                # An embedding: rows are chosen first, and become floats then.
                _, scale, zero = node.input
                weight = scale.removesuffix("_scale") + "_quantized"
                yield _renamed(scale.removesuffix("_scale")), self._float(weight, zero, scale)
            case "Conv" | "ConvTranspose" if not module.endswith("stft"):
                yield _renamed(f"{module}.weight"), self._constants[node.input[1]]
            case "MatMul" if node.input[1] in self._constants:
                yield _renamed(f"{module}.weight"), self._constants[node.input[1]].T
            case "DynamicQuantizeLSTM":
                yield from self._recurrent(module, node.input)

    def _float(self, weight: str, zero: str, scale: str, *, of_conv: bool = True) -> np.ndarray:
        """Return 8-bit weights as floats, outputs first; products have them last in the file."""
        value = self._constants[weight].astype(np.float32)
        value = (value - self._constants[zero].astype(np.float32)) * self._constants[scale]
        return value if of_conv else value.T

    def _recurrent(self, module: str, names: Any) -> Iterator[tuple[str, np.ndarray]]:
        """A two-way LSTM; the file orders its gates input, output, forget, cell."""
        for way, suffix in enumerate(("l0", "l0_reverse")):
            for kind, weight, scale, zero in (("ih", 1, 8, 9), ("hh", 2, 10, 11)):
                value = self._constants[names[weight]][way].astype(np.float32)
                value = value - self._constants[names[zero]].astype(np.float32)[way]
                value = (value * self._constants[names[scale]][way]).T
                yield _renamed(f"{module}.weight_{kind}_{suffix}"), _reordered(value)
            biases = self._constants[names[3]][way]
            for kind, half in zip(("ih", "hh"), np.split(biases, 2), strict=True):
                yield _renamed(f"{module}.bias_{kind}_{suffix}"), _reordered(half)


def _reordered(value: np.ndarray) -> np.ndarray:
    return np.concatenate([np.split(value, len(_GATES))[gate] for gate in _GATES])


def _module(node: str) -> str:
    parts: list[str] = []
    for part in node.strip("/").split("/")[:-1]:
        if parts and part.startswith(parts[-1] + "."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
