"""The teacher, Kokoro-82M, spoken by PyTorch from its int8 ONNX file, so that a GPU can do it.

The file holds 8-bit weights and quantises activations on the way, which GPU runtimes do badly. Here
the same graph is read with float activations: what quantises an activation passes it on and calls
its step `_STEP`, and the integer products use weights that are divided by that step. All that
follows in the graph (bias in units of the step, scaling back) then comes out as in floats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Small enough that a bias, rounded to whole steps by the graph, keeps 16 bits.
_STEP: Final = 2.0**-14
_DURATIONS: Final = "/encoder/Clip_output_0"
_AUDIO: Final = "audio"
_TYPES: Final = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool}
# Integers of this many elements at most are shapes and indices; they stay on the CPU.
_SMALL: Final = 64

Operator = Callable[..., Any]


@dataclass(frozen=True)
class _Node:
    """One operator of the graph; `last_uses` are values that nothing after it reads."""

    run: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    last_uses: tuple[str, ...]


def _ints(value: Tensor) -> list[int]:
    return [int(v) for v in value.flatten().tolist()]


def _broadcast(x: Tensor, shape: Tensor) -> Tensor:
    return x * torch.ones(_ints(shape), dtype=x.dtype, device=x.device)


def _reshape(x: Tensor, shape: Tensor, **_: Any) -> Tensor:
    sizes = _ints(shape)
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(sizes)])


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    for axis in sorted(_ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _slice(
    x: Tensor,
    starts: Tensor,
    ends: Tensor,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    count = starts.numel()
    along = range(count) if axes is None else _ints(axes)
    strides = [1] * count if steps is None else _ints(steps)
    for axis, start, end, stride in zip(along, _ints(starts), _ints(ends), strides, strict=True):
        size = x.shape[axis]
        places = range(size)[slice(start, None if stride < 0 and end < -size else end, stride)]
        if stride == 1:
            x = x.narrow(axis, places.start, len(places))
        else:
            x = x.index_select(axis, torch.tensor(list(places), device=x.device))
    return x


def _gather(x: Tensor, index: Tensor, axis: int = 0) -> Tensor:
    if not index.ndim:
        return x.select(axis, int(index))
    index = index.to(x.device)
    flat = (index % x.shape[axis]).flatten()
    shape = x.shape[:axis] + index.shape + x.shape[axis:][1:]
    return x.index_select(axis, flat).reshape(shape)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    before, after = how["pads"]
    if before != after:
        x, before = F.pad(x, (before, after)), 0
    stride, dilation = how["strides"][0], how["dilations"][0]
    return F.conv1d(x, weight, bias, stride, before, dilation, how["group"])


def _spread(x: Tensor, weight: Tensor, bias: Tensor | None = None, **how: Any) -> Tensor:
    extra = how.get("output_padding", [0])[0]
    return F.conv_transpose1d(
        x, weight, bias, how["strides"][0], how["pads"][0], extra, how["group"], how["dilations"][0]
    )


def _spectrum(x: Tensor, hop: Tensor, window: Tensor, size: Tensor, **_: Any) -> Tensor:
    frames = x.flatten(1).unfold(1, int(size), int(hop)) * window
    both = torch.view_as_real(torch.fft.rfft(frames))
    real, imaginary = both[..., 0], both[..., 1]
    # The graph finds the phase as an arc tangent of a quotient and corrects the half plane: 0 / 0
    # would be no number, and an imaginary part of exactly zero would land on the wrong side.
    real = torch.where((real == 0) & (imaginary == 0), 1e-10, real)
    return torch.stack([real, torch.where(imaginary == 0, 1e-20, imaginary)], dim=-1)


def _put(x: Tensor, index: Tensor, updates: Tensor, **_: Any) -> Tensor:
    out = x.clone()
    out[tuple(index.to(x.device).movedim(-1, 0))] = updates.to(x.device)
    return out


def _pad(x: Tensor, pads: Tensor, *_: Any, mode: str) -> Tensor:
    sizes = _ints(pads)
    flat = F.pad(x.reshape(1, -1, x.shape[-1]), (sizes[x.ndim - 1], sizes[-1]), mode=mode)
    return flat.reshape(*x.shape[:-1], -1)


def _resize(x: Tensor, _roi: Any, scales: Tensor, *, mode: str, **_: Any) -> Tensor:
    aligned = None if mode == "nearest" else False
    return F.interpolate(x, scale_factor=float(scales[-1]), mode=mode, align_corners=aligned)


def _normed(x: Tensor, weight: Tensor, bias: Tensor, *, epsilon: float, **_: Any) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def _divide(x: Tensor, y: Tensor) -> Tensor:
    return x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc")


def _axes(function: Callable[..., Tensor]) -> Operator:
    """Reduce over the axes that an input names."""
    return lambda x, axes, keepdims=1, **_: function(x, dim=_ints(axes), keepdim=bool(keepdims))


def _plain(function: Callable[..., Any]) -> Operator:
    return lambda *values, **_: function(*values)


_OPERATORS: Final[dict[str, Operator]] = {
    **{
        name: _plain(function)
        for name, function in {
            "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": _divide, "Pow": torch.pow,
            "MatMul": torch.matmul, "And": torch.logical_and, "Equal": torch.eq, "Less": torch.lt,
            "Greater": torch.gt, "GreaterOrEqual": torch.ge, "Where": torch.where,
            "Sqrt": torch.sqrt, "Sin": torch.sin,
            "Cos": torch.cos, "Exp": torch.exp, "Tanh": torch.tanh, "Atan":
            torch.atan, "Sigmoid": torch.sigmoid, "Floor": torch.floor, "Round": torch.round,
            "Expand": _broadcast,
        }.items()
    },
    "Cast": lambda x, to, **_: x if x.is_floating_point() and to == 6 else x.to(_TYPES[to]),
    "Shape": lambda x, **_: torch.tensor(x.shape),
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Squeeze": lambda x, axes: x.squeeze(tuple(_ints(axes))),
    "Slice": _slice,
    "Gather": _gather,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Split": lambda x, sizes, axis: x.split(_ints(sizes), axis),
    "Transpose": lambda x, perm: x.permute(perm),
    "ConstantOfShape": lambda shape, value: value.expand(_ints(shape)).clone(),
    "Range": lambda start, end, step: torch.arange(int(start), int(end), int(step)),
    "NonZero": lambda x: x.nonzero().T,
    "ScatterND": _put,
    "CumSum": lambda x, axis, **_: x.cumsum(int(axis)),
    "Clip": lambda x, low=None, high=None: x.clamp(
        None if low is None else low.item(), None if high is None else high.item()
    ),
    "ReduceMean": _axes(torch.mean),
    "ReduceSum": _axes(torch.sum),
    "Softmax": lambda x, axis: x.softmax(axis),
    "LeakyRelu": lambda x, alpha: F.leaky_relu(x, alpha),
    "FastGelu": lambda x, bias: F.gelu(x + bias, approximate="tanh"),
    "LayerNormalization": _normed,
    "SkipLayerNormalization": lambda x, y, w, b, **how: _normed(x + y, w, b, **how),
    "FusedMatMul": lambda x, y, transA, **_: (x.mT if transA else x) @ y,
    "Conv": _convolve,
    "ConvTranspose": _spread,
    "Resize": _resize,
    "Pad": _pad,
    "STFT": _spectrum,
    "DequantizeLinear": lambda x, scale, zero, **_: (x.float() - zero.float()) * scale,
}  # fmt: skip


class Teacher:
    """The graph on one device.

    Args:
        file: `kokoro-v1.0.int8.onnx`.
        device: floats live there; shapes and indices stay on the CPU.
    """

    def __init__(self, file: Path, device: str) -> None:
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]

        torch.set_num_threads(1)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self._device = torch.device(device)
        graph = onnx.load(str(file)).graph
        # 8-bit constants are weights and their zero points; they become floats where they are used.
        self._constants: dict[str, Any] = {"": None}
        for tensor in graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            self._constants[tensor.name] = self._placed(value)
        self._nodes = self._prepared(list(graph.node))
        self._constants = {
            name: value for name, value in self._constants.items() if name in self._read()
        }

    def _placed(self, value: Tensor) -> Tensor:
        is_small = not value.is_floating_point() and value.numel() <= _SMALL
        return value if is_small else value.to(self._device)

    def _read(self) -> set[str]:
        return {name for node in self._nodes for name in node.inputs} | {""}

    def _prepared(self, graph_nodes: Sequence[Any]) -> list[_Node]:
        """Bind each operator, compute what depends on constants alone, order by need."""
        inputs = {"tokens", "style", "speed"}
        known = inputs | self._constants.keys()
        waiting, nodes = list(graph_nodes), []
        while waiting:
            later = []
            for node in waiting:
                if not known.issuperset(node.input):
                    later.append(node)
                    continue
                known.update(node.output)
                run, names, attributes = self._bound(node)
                prepared = _Node(run, names, tuple(node.output), attributes, ())
                if node.op_type != "DynamicQuantizeLinear" and all(
                    n in self._constants for n in names
                ):
                    self._constants.update(self._results(prepared, self._constants))
                else:
                    nodes.append(prepared)
            if len(later) == len(waiting):
                raise ValueError(f"the graph has operators without inputs: {later[0].name}")
            waiting = later
        return self._needed(nodes)

    def _needed(self, nodes: Sequence[_Node]) -> list[_Node]:
        wanted, kept = {_AUDIO, _DURATIONS}, []
        for node in reversed(nodes):
            if wanted.isdisjoint(node.outputs):
                continue
            fresh = {n for n in node.inputs if n not in wanted and n not in self._constants}
            wanted.update(node.inputs)
            kept.append(_Node(node.run, node.inputs, node.outputs, node.attributes, tuple(fresh)))
        return kept[::-1]

    def _bound(self, node: Any) -> tuple[Operator, tuple[str, ...], dict[str, Any]]:
        from onnx import helper, numpy_helper  # pyright: ignore[reportMissingImports]

        attributes: dict[str, Any] = {}
        for attribute in node.attribute:
            value = helper.get_attribute_value(attribute)
            if isinstance(value, bytes):
                value = value.decode()
            elif hasattr(value, "data_type"):
                value = torch.from_numpy(numpy_helper.to_array(value).copy())
            attributes[attribute.name] = value
        names = tuple(node.input)
        match node.op_type:
            case "DynamicQuantizeLinear":
                # Scale and zero point are constants from here on.
                _, scale, zero = node.output
                self._constants[scale] = torch.tensor(_STEP, device=self._device)
                self._constants[zero] = torch.tensor(0.0, device=self._device)
                return (lambda x: (x,)), names, {}
            case "ConvInteger":
                weight = self._float(names[1], names[3], leading=True) / _STEP
                return (lambda x, **how: _convolve(x, weight, **how)), names[:1], attributes
            case "MatMulInteger":
                weight = self._float(names[1], names[3], leading=False) / _STEP
                return (lambda x: x @ weight), names[:1], {}
            case "DynamicQuantizeLSTM":
                return self._recurrent(names), names[:1], {}
        return _OPERATORS[node.op_type], names, attributes

    def _float(self, weight: str, zero: str, scale: str | None = None, *, leading: bool) -> Tensor:
        """Return 8-bit weights as floats; their offsets run along the first or the last axis."""
        value = self._constants[weight].to(self._device).float()

        def along(name: str) -> Tensor:
            factor = self._constants[name].to(self._device).float()
            if leading and factor.ndim:
                factor = factor.view(-1, *[1] * (value.ndim - 1))
            return factor

        value = value - along(zero)
        return value if scale is None else value * along(scale)

    def _recurrent(self, names: Sequence[str]) -> Operator:
        """A two-way LSTM; the file orders its gates input, output, forget, cell."""
        incoming = self._float(names[1], names[9], names[8], leading=True).mT
        recurrent = self._float(names[2], names[11], names[10], leading=True).mT
        biases = self._constants[names[3]].to(self._device)
        size = recurrent.shape[-1]
        gates = torch.arange(4 * size, device=self._device).view(4, size)[[0, 2, 3, 1]].flatten()
        lstm = nn.LSTM(incoming.shape[-1], size, bidirectional=True).to(self._device)
        state = {}
        for way, suffix in enumerate(("l0", "l0_reverse")):
            state[f"weight_ih_{suffix}"] = incoming[way][gates]
            state[f"weight_hh_{suffix}"] = recurrent[way][gates]
            state[f"bias_ih_{suffix}"], state[f"bias_hh_{suffix}"] = (
                half[gates] for half in biases[way].chunk(2)
            )
        lstm.load_state_dict(state)

        def run(x: Tensor) -> tuple[Tensor]:
            both = lstm(x)[0]
            return (both.unflatten(-1, (2, size)).transpose(1, 2),)

        return run

    def _results(self, node: _Node, values: dict[str, Any]) -> dict[str, Any]:
        arguments = [values[name] for name in node.inputs]
        tensors = [a for a in arguments if a is not None]
        if len({a.device for a in tensors}) > 1 and not _is_indexing(node.run):
            arguments = [a if a is None else a.to(self._device) for a in arguments]
        found = node.run(*arguments, **node.attributes)
        if isinstance(found, Tensor):
            return {node.outputs[0]: found}
        return dict(zip(node.outputs, found, strict=False))

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[int], style: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Speak; see `synthesis.Speak`."""
        values = dict(self._constants)
        values["tokens"] = torch.tensor([[0, *tokens, 0]], device=self._device)
        values["style"] = torch.from_numpy(style).view(1, -1).to(self._device)
        values["speed"] = torch.ones(1, device=self._device)
        durations = None
        for node in self._nodes:
            values.update(self._results(node, values))
            if node.outputs[0] == _DURATIONS:
                durations = values[_DURATIONS]
            for name in node.last_uses:
                values.pop(name, None)
        audio = values[_AUDIO].flatten().float().cpu().numpy()
        if durations is None:
            raise ValueError(f"the graph has no {_DURATIONS}")
        return audio, durations.flatten().cpu().numpy().astype(np.int64)


_INDEXING: Final = frozenset(
    id(_OPERATORS[name])
    for name in ("Reshape", "Unsqueeze", "Squeeze", "Slice", "Gather", "Expand", "ScatterND", "Pad",
                 "Split", "CumSum", "ReduceMean", "ReduceSum", "Clip", "Resize", "STFT")
)  # fmt: skip


def _is_indexing(run: Operator) -> bool:
    """Whether the operator reads its further inputs on the host."""
    return id(run) in _INDEXING
