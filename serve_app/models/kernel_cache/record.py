"""Note which kernels a process compiles or fetches from the cache."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

from serve_app.models.kernel_cache.variants import Frozen, Variant, frozen_items


@contextmanager
def recording() -> Iterator[set[Variant]]:
    """Add to the set that is returned every variant that Triton meets for the first time."""
    found: set[Variant] = set()
    lock = threading.Lock()
    before: Callable[..., Any] | None = knobs.runtime.jit_cache_hook

    def note(**event: Any) -> Any:
        variant = _variant(event)
        with lock:
            found.add(variant)
        return before(**event) if before is not None else None

    knobs.runtime.jit_cache_hook = note
    try:
        yield found
    finally:
        knobs.runtime.jit_cache_hook = before


def _variant(event: dict[str, Any]) -> Variant:
    """The variant that a call of Triton's hook tells of."""
    what, kernel = event["compile"], event["fn"]
    constants = [(place, _plain(value)) for place, value in what["constants"].items()]
    return Variant(
        kernel.module,
        kernel.name,
        frozen_items(what["signature"].items()),
        frozen_items(constants),
        frozen_items(what["configs"][0].items()),
        _options(kernel.jit_function, what),
    )


def _plain(value: Any) -> Any:
    kind = type(value).__name__
    if kind == "dtype":
        return ("dtype", str(value))
    return ("constexpr", value.value) if kind == "constexpr" else value


def _options(kernel: Any, what: dict[str, Any]) -> Frozen:
    """The launch's options that are not what Triton takes by itself on this device."""
    used = json.loads(what["specialization_data"])["options"]
    target: GPUTarget = kernel.device_caches[what["device"]][2]
    usual = json.loads(json.dumps(make_backend(target).parse_options({}).__dict__))
    return frozen_items((name, value) for name, value in used.items() if value != usual.get(name))
