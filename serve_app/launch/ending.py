"""How the server ends: by the first SIGTERM or Ctrl-C it finishes what it speaks, by a second one
it ends at once.

The launcher alone hears of a Ctrl-C or of what else goes to its process group: all others are in
sessions of their own (`cluster.own_session`).
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn, Protocol

from serve_app.config import IngressConfig
from serve_app.launch.several import WITH_INGRESS

_LOOK_EVERY_S: Final = 0.1
_LOOK_LOST_S: Final = 0.5
# Of a busy ingress, whose answer comes behind its audio.
_ANSWER_S: Final = 5.0
# From being cut to having said so.
_LAST_WORDS_S: Final = 2.0
# What the last stream has written is still in buffers on its way out.
_FLUSH_S: Final = 0.5
# Some runners of programs pass on a signal that the whole process group has had already.
_SAME_S: Final = 0.3
# For an answer that is on its way.
_SETTLE_S: Final = 1.0
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
# By which the main thread is told that nothing is open any more.
_DRAINED: Final = signal.SIGUSR1

logger = logging.getLogger(__name__)


class Ingresses(Protocol):
    """All that answer clients."""

    def drain(self) -> int:
        """Take no new speech; how many requests are open."""
        ...

    def cut(self) -> int:
        """End those that are; how many are left."""
        ...

    def unsent(self) -> int:
        """How many answers are on their way out in front of them."""
        ...


def limit_of(config: Mapping[str, Any]) -> float:
    """The longest `drain_s` of a Serve config's ingresses."""
    found = [
        IngressConfig.model_validate(application.get("args", {}).get("ingress", {})).drain_s
        for application in config["applications"]
        if application.get("import_path") in WITH_INGRESS
    ]
    return max(found, default=0.0)


def finish(
    ingresses: Ingresses,
    limit_s: float,
    say: Callable[[str], None],
    sleep: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Have `ingresses` finish what is open, for `limit_s` seconds; end what is left then.

    Raises what `sleep` raises.
    """
    end_s = clock() + limit_s
    was_open = left = ingresses.drain()
    if left:
        say(f"finishing {_streams(left)}, for {limit_s:g} s at most; press Ctrl-C again to end now")
    while left and clock() < end_s:
        sleep(_LOOK_EVERY_S)
        left = ingresses.drain()
    if left:
        say(f"{_streams(left)} did not end within {limit_s:g} s and will be cut")
        end_s = clock() + _LAST_WORDS_S
        left = ingresses.cut()
        while left and clock() < end_s:
            sleep(_LOOK_EVERY_S)
            left = ingresses.cut()
    if was_open:
        sleep(_FLUSH_S)
    while clock() < end_s and ingresses.unsent():
        sleep(_LOOK_EVERY_S)


def _streams(number: int) -> str:
    return f"{number} stream{'s' * (number != 1)}"


class Ending:
    """What the two signals do from `listen` on.

    Args:
        drain: blocks until nothing is open; called with what it waits by between two looks.
        how: raised in the main thread to end the program.
        lost: why nothing is left that could be ended, or None; asked twice a second, with whether
            a signal has come. The process then ends at once: whatever asks a cluster that is gone
            waits for it for a minute, upon which Ray aborts the process.
    """

    def __init__(
        self,
        drain: Callable[[Callable[[float], None]], None],
        how: Callable[[], BaseException],
        lost: Callable[[bool], str | None] = lambda told: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._drain = drain
        self._how = how
        self._lost = lost
        self.has_failed = False
        self._clock = clock
        self._told_s: float | None = None
        self._is_over = False
        self._at_once = threading.Event()
        self._settled = threading.Event()
        self._draining = threading.Thread(target=self._end, name="drain", daemon=True)

    def listen(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        signal.signal(_DRAINED, self._on_drained)
        threading.Thread(target=self._watch, name="cluster-watch", daemon=True).start()

    @property
    def was_told(self) -> bool:
        """Whether a signal has come."""
        return self._told_s is not None

    def fail(self) -> None:
        """End the program, from another thread: it will never serve."""
        if not self.was_told:
            self.has_failed = True
            self._wake()

    def settle(self) -> None:
        """Nothing asks the cluster for anything any more, which may go."""
        self._settled.set()
        self._at_once.set()
        if self._told_s is not None:
            self._draining.join(_SETTLE_S)

    def _on_signal(self, number: int, frame: object) -> None:
        del number, frame
        now_s = self._clock()
        if self._told_s is None:
            self._told_s = now_s
            # Not here: the main thread may be in the middle of a call to Ray.
            self._draining.start()
        elif now_s - self._told_s >= _SAME_S:
            self._leave()

    def _on_drained(self, number: int, frame: object) -> None:
        del number, frame
        if not self._is_over:
            self._leave()

    def _leave(self) -> NoReturn:
        self._is_over = True
        self._at_once.set()
        for number in _SIGNALS:  # another one does not wait for an orderly end
            signal.signal(number, signal.SIG_DFL)
        raise self._how()

    def _watch(self) -> None:
        while not self._settled.wait(_LOOK_LOST_S):
            reason = self._lost(self._told_s is not None)
            if reason is not None:
                print(f"{reason}: the server ends", flush=True)
                os._exit(1)

    def _end(self) -> None:
        try:
            self._drain(self._pause)
        except _AtOnce:
            return
        except Exception:
            logger.exception("what is open cannot be finished")
        self._wake()

    def _wake(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, _DRAINED)

    def _pause(self, seconds: float) -> None:
        if self._at_once.wait(seconds):
            raise _AtOnce


class _AtOnce(Exception):
    """Nothing is waited for any more."""


class ServeIngresses:
    """Those of all applications of the Serve instance that this process has started.

    Args:
        unsent: as `Ingresses.unsent`.
    """

    def __init__(self, unsent: Callable[[], int]) -> None:
        self.unsent = unsent
        self._handles: list[Any] | None = None

    def drain(self) -> int:
        return self._call("drain")

    def cut(self) -> int:
        return self._call("cut")

    def _call(self, method: str) -> int:
        """Of an ingress that does not answer nobody knows; it counts as one request."""
        from ray.serve.exceptions import DeploymentUnavailableError

        if self._handles is None:
            self._handles = list(_ingresses())
        calls = [handle.broadcast(method) for handle in self._handles]
        left = 0
        for call in calls:
            try:
                answers = call.results(timeout_s=_ANSWER_S, return_exceptions=True)
            except DeploymentUnavailableError:  # none of it runs
                continue
            except TimeoutError as error:
                answers = [error]
            left += sum(answer if isinstance(answer, int) else 1 for answer in answers)
        return left


def _ingresses() -> Iterator[Any]:
    """A handle for those of each application that has any which run."""
    from ray import serve
    from ray.serve.context import _get_global_client

    if _get_global_client(raise_if_no_controller_running=False) is None:
        return
    for name, application in serve.status().applications.items():
        ingress = application.deployments.get("Ingress")
        states: dict[Any, int] = {} if ingress is None else {**ingress.replica_states}
        if states.get("RUNNING"):
            yield serve.get_deployment_handle("Ingress", name)
