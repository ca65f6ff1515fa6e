"""Functions in a process of their own, as engines and stages have one in a server.

A process that had closed one engine and went on has ended in corrupt Python objects and in
segmentation faults (docs/performance.md). No server does that: a process has one engine, and ends
with it.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_START_AND_RUN_S = 240.0


class Apart(Generic[R]):
    """A call that runs in another process.

    Args:
        function: of a module; with its arguments and result picklable and without CUDA tensors.
    """

    def __init__(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> None:
        context = multiprocessing.get_context("spawn")
        self._receiver, sender = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_answer, args=(sender, function, args, kwargs), daemon=True
        )
        self._process.start()
        sender.close()

    def result(self, timeout_s: float = _START_AND_RUN_S) -> R:
        """What it returned; fails with what it raised, or when it has ended otherwise."""
        try:
            assert self._receiver.poll(timeout_s), f"no answer after {timeout_s:g} s"
            failure, result = self._receiver.recv()
        except EOFError:
            self._process.join(10)
            code = self._process.exitcode
            raise AssertionError(f"the process ended without an answer, status {code}") from None
        finally:
            self._process.kill()
            self._process.join()
            self._receiver.close()
        assert failure is None, failure
        return result


def apart(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `function` in another process and wait for it."""
    return Apart(function, *args, **kwargs).result()


def _answer(
    sender: Connection, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    try:
        sender.send((None, function(*args, **kwargs)))
    except BaseException:
        sender.send((traceback.format_exc(), None))
    # Past everybody's clean-up: a process that has used vLLM may hang at its end.
    os._exit(0)


def fail_on_late_kernels() -> None:
    """From now on a kernel that this process meets for the first time raises where it is launched.

    vLLM begins to watch when it is warm, in a mode that only warns, since the stage's rehearsal is
    still to come; here the rehearsal is over.
    """
    from vllm.utils import jit_monitor

    jit_monitor.activate(mode="error")  # where no engine has done so
    jit_monitor._mode = "error"
