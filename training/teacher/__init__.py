"""The teacher, Kokoro-82M, as modules that read and speak many sentences at once."""

from pathlib import Path

import torch

from training.teacher.layers import Convolution
from training.teacher.network import Kokoro, Reading
from training.teacher.shape import TeacherShape
from training.teacher.weights import Weights

__all__ = ["Kokoro", "Reading", "TeacherShape", "load"]


def load(file: Path, device: str) -> Kokoro:
    """Return the network with the weights of `kokoro-v1.0.int8.onnx`; on a GPU, partly in float16.

    Raises:
        KeyError: the file lacks weights.
    """
    with torch.device("meta"):
        network = Kokoro(TeacherShape())
    found = Weights(file).state()
    state = {name: found[name].reshape(value.shape) for name, value in network.state_dict().items()}
    network.load_state_dict(state, assign=True)
    network.decoder.generator.window = torch.hann_window(network.shape.fft)
    for module in network.modules():
        if isinstance(module, Convolution):
            # As convolutions over channels that lie side by side read it.
            weight = module.weight.data.transpose(1, 2).contiguous()
            module.weight.data = weight.transpose(1, 2)
    if torch.device(device).type == "cuda":
        network.decoder.generator.halve()
    return network.to(device).eval().requires_grad_(False)
