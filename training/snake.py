"""The decoder's activation as one kernel each way.

x + sin(a x)^2 / b takes eight passes over memory when written in PyTorch, twenty with its gradient,
and the decoder spends most of its time in them. Triton comes with PyTorch on a GPU.
"""

import logging
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn

_BLOCK: Final = 1024
_LOG = logging.getLogger(__name__)


def _kernels() -> tuple[Any, Any]:
    import triton
    import triton.language as tl

    @triton.jit
    def forward(x, out, alpha, beta, channels, length, block: tl.constexpr):
        row, tile = tl.program_id(0), tl.program_id(1)
        a = tl.exp(tl.load(alpha + row % channels))
        b = tl.exp(tl.load(beta + row % channels)) + 1e-9
        place = tile * block + tl.arange(0, block)
        inside = place < length
        where = row.to(tl.int64) * length + place
        value = tl.load(x + where, mask=inside, other=0.0)
        wave = tl.sin(value * a)
        tl.store(out + where, value + wave * wave / b, mask=inside)

    @triton.jit
    def backward(
        x, grad, out, alpha, beta, of_alpha, of_beta, channels, length, block: tl.constexpr
    ):
        row, tile = tl.program_id(0), tl.program_id(1)
        channel = row % channels
        a = tl.exp(tl.load(alpha + channel))
        b = tl.exp(tl.load(beta + channel)) + 1e-9
        place = tile * block + tl.arange(0, block)
        inside = place < length
        where = row.to(tl.int64) * length + place
        value = tl.load(x + where, mask=inside, other=0.0)
        given = tl.load(grad + where, mask=inside, other=0.0)
        wave = tl.sin(value * a)
        slope = 2.0 * wave * tl.cos(value * a) * a / b
        tl.store(out + where, given * (1.0 + slope), mask=inside)
        # With respect to the logarithms: a and b themselves are exponentials.
        tl.atomic_add(of_alpha + channel, tl.sum(given * slope * value, 0))
        tl.atomic_add(of_beta + channel, tl.sum(-given * wave * wave / b, 0))

    return forward, backward


class _Snake(torch.autograd.Function):
    kernels: tuple[Any, Any] | None = None

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, alpha, beta)
        out = torch.empty_like(x)
        batch, channels, length = x.shape
        grid = (batch * channels, -(-length // _BLOCK))
        assert _Snake.kernels is not None
        _Snake.kernels[0][grid](x, out, alpha, beta, channels, length, block=_BLOCK)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, alpha, beta = ctx.saved_tensors
        grad = grads[0].contiguous()
        out, of_alpha, of_beta = (
            torch.empty_like(x),
            torch.zeros_like(alpha),
            torch.zeros_like(beta),
        )
        batch, channels, length = x.shape
        grid = (batch * channels, -(-length // _BLOCK))
        assert _Snake.kernels is not None
        _Snake.kernels[1][grid](
            x, grad, out, alpha, beta, of_alpha, of_beta, channels, length, block=_BLOCK
        )
        return out, of_alpha, of_beta


def snake(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return x + sin(exp(alpha) x)^2 / exp(beta) of float32 [B, C, T], by one kernel."""
    if _Snake.kernels is None:
        _Snake.kernels = _kernels()
    return _Snake.apply(x, alpha, beta)  # pyright: ignore[reportReturnType]


def _forward(self: Any, hidden_states: Tensor) -> Tensor:
    return snake(hidden_states, self.alpha, self.beta)


def hasten(decoder: nn.Module, device: torch.device) -> bool:
    """Let the decoder's activations use the kernel, if it works here; return whether it does."""
    found = [m for m in decoder.modules() if type(m).__name__ == "SnakeBeta"]
    if device.type != "cuda" or not found:
        return False
    try:
        compare(found[0], device)
    except Exception:
        # Slower, but lent GPU time must not end here.
        _LOG.exception("the activation's kernel does not work; PyTorch's operations take its place")
        return False
    for module in found:
        module.forward = MethodType(_forward, module)
    return True


def compare(module: Any, device: torch.device) -> None:
    """Raise AssertionError where the kernel and the reference's `module` differ."""
    x = torch.randn(3, len(module.alpha), 1500, device=device)
    results = []
    for function in (type(module).forward, _forward):
        given = x.clone().requires_grad_()
        made = function(module, given)
        gradients = torch.autograd.grad(made.square().mean(), (given, module.alpha, module.beta))
        results.append((made, *gradients))
    for expected, value in zip(*results, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5)
