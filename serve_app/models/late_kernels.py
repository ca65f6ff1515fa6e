"""Kernels that Triton meets after a stage said that it was ready: there should be none.

A request that is the first to need a variant of a kernel waits for its compilation, or for the
cache; so does everybody in the step with it. `rehearsal` is there so that this counter stays 0.
"""

import logging
import threading
from typing import Any, Final

# What the line says of each, by which `load_tests` finds it.
LATE: Final = "was compiled or fetched after this stage was ready"

logger = logging.getLogger(__name__)


class LateKernels:
    """Counts variants that this process meets for the first time after `watch`.

    A graph that is captured late is not counted: its kernels have been met before, or are.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_watching = False
        self._count = 0

    @property
    def count(self) -> int:
        return self._count

    def watch(self) -> None:
        """Begin to count; called again, does nothing. In the whole process, for good."""
        from triton import knobs

        with self._lock:
            if self._is_watching:
                return
            self._is_watching = True
            before = knobs.runtime.jit_post_compile_hook

            def note(**event: Any) -> Any:
                self._note(getattr(event.get("fn"), "name", "a kernel"))
                return before(**event) if before is not None else None

            knobs.runtime.jit_post_compile_hook = note

    def _note(self, name: str) -> None:
        with self._lock:
            self._count += 1
        logger.warning("%s %s", name, LATE)


late_kernels = LateKernels()
