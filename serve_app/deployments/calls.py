"""How deployments call each other: streams that fail with the errors of `serve_app.errors`."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, Final, NamedTuple, ParamSpec, TypeVar

import grpc
import numpy as np
from ray.exceptions import (
    ActorDiedError,
    NodeDiedError,
    ObjectLostError,
    RayActorError,
    RayTaskError,
    TaskCancelledError,
    WorkerCrashedError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from serve_app.errors import Overloaded, SpeechError, StageFailed, StageLost, StageUnavailable
from serve_app.load.routing import FewestStreams
from serve_app.load.streams import CALLING, Stream
from serve_app.resumption import Resumable
from serve_app.types import SpeechRequest

_FRAME_S: Final = 0.08
# Longer than any wait that a request is let in for, and a busy replica's first audio.
_FIRST_S: Final = 1.0
# Where an instance keeps how many streams it has open.
_OPEN: Final = "_open_streams"
# For Serve; see deployments/limits.py.
ROUTER: Final = FewestStreams

S = TypeVar("S")
T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Refused:
    """The last item of a stream that a replica has no room for.

    Serve takes what is raised for a fault: it writes a traceback and counts an error for each.
    """

    error: Overloaded


def ending_refused(
    method: Callable[Concatenate[S, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[S, P], AsyncGenerator[T | Refused, None]]:
    """For the methods that `through` calls: the items of the stream that `method` returns, or at
    last that there was no room; raises what else the stream raises.
    """

    @wraps(method)
    async def stream(
        self: S, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T | Refused, None]:
        try:
            async with aclosing(method(self, *args, **kwargs)) as items:
                async for item in items:
                    yield item
        except Overloaded as error:
            yield Refused(error)

    return stream


class Told(NamedTuple):
    """An item of a stream, and how many streams its replica had when it left."""

    item: Any
    streams: int


def telling(
    method: Callable[Concatenate[S, P], AsyncGenerator[T, None]],
) -> Callable[Concatenate[S, P], AsyncGenerator[Told, None]]:
    """For the methods that `through` calls: each item with the number of streams that are open.

    So a caller that has streams at all replicas knows how many each of them has, without asking,
    as of a few milliseconds ago.
    """

    @wraps(method)
    async def stream(self: S, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[Told, None]:
        kept = vars(self)
        kept[_OPEN] = kept.get(_OPEN, 0) + 1
        try:
            async with aclosing(method(self, *args, **kwargs)) as items:
                async for item in items:
                    yield Told(item, kept[_OPEN])
        finally:
            kept[_OPEN] -= 1

    return stream


def through(handle: DeploymentHandle, method: str) -> Resumable[Any]:
    """Calls of a deployment's `method(request, done)`, which yields; closing one cancels it.

    With plain pickle for what it takes and yields: Serve's default looks at every class and
    function from Python, which takes as long as the rest of pickling a chunk, and what passes
    between stages is importable on both sides.

    Raises (the generator): the errors of `from_ray`, and what a `Refused` holds.
    """
    stage = handle.options(
        stream=True, request_serialization="pickle", response_serialization="pickle"
    )
    remote = getattr(stage, method).remote

    async def call(request: SpeechRequest, done: np.ndarray | None) -> AsyncGenerator[Any, None]:
        response = HandleResponse(remote, request, done, stream=Stream(first_s=_FIRST_S))
        ended = False
        refused: Refused | None = None
        try:
            async for item in response:
                if isinstance(item, Told):
                    item, num_streams = item
                    response.told(num_streams)
                if isinstance(item, Refused):
                    refused = item
                    response.refused()
                else:
                    response.made(len(item.codes) * _FRAME_S)
                    yield item
            ended = True
        except asyncio.CancelledError as error:
            # Serve reports a call that was cancelled over there in the same way as our own end.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            ended = True
            raise from_ray(error) from error
        except Exception as error:
            ended = True
            raise from_ray(error) from error
        finally:
            response.close(ended)
        if refused is not None:
            raise refused.error

    return call


class HandleResponse:
    """What `remote(*arguments)` of a streaming handle yields, as long as its replica answers.

    Raises StageUnavailable, beside what Serve raises, where it does not and another one does.
    """

    def __init__(
        self, remote: Callable[..., Any], *arguments: Any, stream: Stream | None = None
    ) -> None:
        self._stream = stream or Stream()
        self.made, self.refused = self._stream.made, self._stream.refused
        self.told = self._stream.told
        calling = CALLING.set(self._stream)
        self._response: Any = remote(*arguments)
        CALLING.reset(calling)

    def __aiter__(self) -> "HandleResponse":
        return self

    def __anext__(self) -> Awaitable[Any]:
        return self._stream.next(self._response)

    def cancel(self) -> None:
        self.close()

    def close(self, ended: bool = False) -> None:
        """Let go of it; `ended`: there is nothing left to cancel."""
        self._stream.join(None)
        if not ended or self._stream.has_left:
            self._response.cancel()


def reach(handle: DeploymentHandle) -> None:
    """Learn from now on which replicas there are, not only from the first call on."""
    with suppress(RuntimeError):  # it has been called already
        handle._init()


def from_ray(error: BaseException) -> SpeechError:
    """The error that a call through a handle stands for.

    Ray wraps what a replica raises, once per replica on the way; inside is the original.
    """
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException):
        error = error.cause
    match error:
        case SpeechError():
            return error
        case BackPressureError():
            return Overloaded("The server is at its limit.", error.retry_after_s or 1.0)
        case ActorDiedError() | WorkerCrashedError():
            return StageLost("a replica died")
        case (
            RayActorError()
            | NodeDiedError()
            | ObjectLostError()
            | ReplicaUnavailableError()
            | DeploymentUnavailableError()
            # Serve translates UNAVAILABLE alone; a connection that ends has other names as well.
            | grpc.RpcError()
        ):
            return StageUnavailable("a replica cannot be reached")
        case RequestCancelledError() | TaskCancelledError() | asyncio.CancelledError():
            return StageUnavailable("a replica stopped")
        case _:
            return StageFailed(f"{type(error).__name__} in a stage")
