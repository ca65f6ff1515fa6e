"""Compile kernels into Triton's cache, for a GPU that need not be there.

The cache is found by what a kernel is made of (source, types, options, compiler), so that a later
launch of the same variant reads the binary instead of compiling.
"""

import importlib
import logging
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from serve_app.models.kernel_cache.variants import Frozen, Variant, fitting

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Filled:
    """How many variants the cache held before, holds now besides, and cannot hold."""

    found: int
    compiled: int
    failed: int


def fill(variants: Sequence[Variant], capability: int, processes: int | None = None) -> Filled:
    """Compile what the cache lacks.

    Args:
        variants: to compile; one that no longer fits its kernel is logged and left out.
        capability: of the GPU, times ten: 90 for Hopper.
        processes: that compile at the same time; None: one per CPU.
    """
    fit = {fitting(variant, capability) for variant in variants}
    processes = min(processes or len(os.sched_getaffinity(0)), max(1, len(fit)))
    # Kernels of one module next to each other, since the first one of a module imports it.
    ordered = sorted(fit, key=lambda variant: (variant.module, variant.name))
    work = [(variant, capability) for variant in ordered]
    if processes == 1:
        outcomes = list(starmap(compile_variant, work))
    else:
        # A fresh interpreter each: a fork would copy the threads' locks of whoever calls.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            outcomes = list(pool.map(_compile, work))
    return Filled(outcomes.count(False), outcomes.count(True), outcomes.count(None))


def _compile(work: tuple[Variant, int]) -> bool | None:
    return compile_variant(*work)


def compile_variant(variant: Variant, capability: int) -> bool | None:
    """Compile one variant: True if it was, False if the cache had it, None if it cannot be."""
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile, make_backend

    hits: list[bool] = []
    knobs.compilation.listener = lambda **event: hits.append(event["cache_hit"])
    try:
        kernel = kernel_of(variant)
        target = GPUTarget("cuda", capability, 32)
        options = make_backend(target).parse_options(dict(variant.options))
        constants = {place: _value(value) for place, value in variant.constants}
        attributes = {place: _lists(value) for place, value in variant.attributes}
        source = ASTSource(kernel, dict(variant.signature), constants, attributes)
        compile(source, target=target, options=options.__dict__)
    except Exception as error:
        logger.warning("kernel %s.%s: not compiled (%r)", variant.module, variant.name, error)
        return None
    finally:
        knobs.compilation.listener = None
    return not hits[-1]


def kernel_of(variant: Variant) -> Any:
    """The function that Triton compiles, below its autotuner or heuristics.

    Raises:
        LookupError, AttributeError, ImportError: there is none to which the variant fits.
    """
    from triton.runtime import JITFunction

    found: Any = importlib.import_module(variant.module)
    for part in variant.name.split("."):
        found = getattr(found, part)
    while not isinstance(found, JITFunction):
        found = found.fn
    if found.arg_names != [name for name, _ in variant.signature]:
        raise LookupError(f"{variant.name} has other arguments now")
    constant = {parameter.name for parameter in found.params if parameter.is_constexpr}
    if not constant <= {name for name, kind in variant.signature if kind == "constexpr"}:
        raise LookupError(f"{variant.name} has other compile-time arguments now")
    return found


def _value(value: Any) -> Any:
    from triton import language as tl

    match value:
        case ("dtype", str(name)):
            return tl.dtype(name)
        case ("constexpr", inner):
            return tl.constexpr(inner)
        case _:
            return value


def _lists(value: Frozen) -> list[list[Any]]:
    # Triton's key has the text of these, which tells lists from tuples.
    return [list(item) for item in value]
