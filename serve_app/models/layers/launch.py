"""How Triton kernels that need each other's results follow each other on the device.

Under programmatic dependent launch (`pdl`; Hopper or newer) a kernel begins while the one before it
still runs: it may fetch what nobody writes meanwhile, its weights above all, and waits before it
reads anything else.
"""

# Triton's type hints leave out what only one kind of device has.
# pyright: reportAttributeAccessIssue=false

import torch
import triton
import triton.language as tl


def can_overlap(device: torch.device) -> bool:
    """Whether kernels on `device` can begin before those they wait for have ended."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@triton.jit
def start_successor(pdl: tl.constexpr):
    """Let the next kernel start: what it reads before `await_predecessor` is never written."""
    if pdl:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def await_predecessor(pdl: tl.constexpr):
    """Wait until all kernels before have ended; every program must, since the next rely on it."""
    if pdl:
        tl.extra.cuda.gdc_wait()


def launch_options(
    num_warps: int, pdl: bool, registers: int | None = None, stages: int | None = None
) -> dict[str, int]:
    """Keywords of a kernel's launch.

    Args:
        num_warps: per program.
        pdl: start while the kernel before still runs.
        registers: of a thread, at most; None leaves it to the compiler.
        stages: loop iterations in flight at once; None leaves it to Triton.
    """
    options = {"num_warps": num_warps}
    if stages is not None:
        options["num_stages"] = stages
    if pdl:
        options["launch_pdl"] = True
    if registers is not None:
        options["maxnreg"] = registers
    return options
