import json
import pickle

import grpc
import grpc.aio
import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve.exceptions import BackPressureError, RequestCancelledError

from serve_app.deployments.calls import from_ray
from serve_app.errors import (
    CheckpointError,
    Full,
    InvalidRequest,
    Overloaded,
    RepeatedFailure,
    ServerDraining,
    SpeechError,
    StageFailed,
    StageLost,
    StageUnavailable,
    UnknownModel,
)
from serve_app.http.errors import error_response

ERRORS = [
    SpeechError("a"),
    InvalidRequest("a"),
    InvalidRequest("a", "voice", "voice_not_found"),
    UnknownModel("a", "model", "model_not_found"),
    Overloaded("a"),
    Overloaded("a", 2.5, "talker"),
    Full("a", 2.5),
    StageUnavailable("a"),
    StageLost("a"),
    ServerDraining("a"),
    StageFailed("a"),
    RepeatedFailure("a"),
    CheckpointError("config.json", "no such file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_an_error_is_the_same_after_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
    assert str(copy) == str(error)


def task_error(cause: Exception) -> Exception:
    """What a caller gets when `cause` is raised in a replica."""
    return RayTaskError("speak", "traceback", cause).as_instanceof_cause()


@pytest.mark.parametrize("hops", [0, 1, 2])
@pytest.mark.parametrize("error", [e for e in ERRORS if isinstance(e, SpeechError)], ids=repr)
def test_an_error_of_ours_comes_through_any_number_of_replicas(error, hops):
    seen: Exception = error
    for _ in range(hops):
        seen = task_error(seen)
    assert from_ray(seen) is error


def test_backpressure_means_overloaded():
    error = from_ray(BackPressureError(5, 4))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 1.0
    error = from_ray(task_error(BackPressureError(5, 4, 429, 3.0)))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 3.0


def test_a_replica_that_died_is_told_from_one_that_cannot_be_reached():
    assert isinstance(from_ray(ActorDiedError()), StageLost)
    cut = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata())
    assert type(from_ray(cut)) is StageUnavailable
    assert not isinstance(from_ray(ActorUnavailableError("gone", b"1" * 16)), StageLost)


@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        ActorUnavailableError("gone", b"1" * 16),
        task_error(ActorDiedError()),
        RequestCancelledError("id"),
    ],
    ids=repr,
)
def test_a_lost_replica_means_unavailable(error):
    assert isinstance(from_ray(error), StageUnavailable)


def test_anything_else_is_a_failure_that_tells_nothing_of_the_inside():
    error = from_ray(task_error(RuntimeError("secret path")))
    assert isinstance(error, StageFailed)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (InvalidRequest("a", "voice", "x"), 400, "invalid_request_error", "x"),
        (UnknownModel("a", "model", "x"), 404, "invalid_request_error", "x"),
        (Overloaded("a"), 429, "rate_limit_error", "server_overloaded"),
        (StageUnavailable("a"), 503, "server_error", "service_unavailable"),
        (StageFailed("a"), 500, "server_error", "generation_failed"),
        (KeyError("a"), 500, "server_error", "internal_error"),
    ],
    ids=repr,
)
def test_the_error_table(error, status, kind, code):
    response = error_response(error)
    assert response.status_code == status
    assert f'"type":"{kind}"'.encode() in response.body
    assert f'"code":"{code}"'.encode() in response.body
    assert ("retry-after" in response.headers) == (status in (429, 503))


def test_retry_headers_are_rounded_up_to_whole_seconds():
    headers = error_response(Overloaded("a", 1.25)).headers
    assert headers["retry-after"] == "2"
    assert headers["retry-after-ms"] == "1250"


def test_what_a_client_sent_is_not_sent_back_at_length():
    told = f"The voice '{'x' * 100_000}' does not exist. Voices: alloy, nova."
    message = json.loads(bytes(error_response(InvalidRequest(told, "voice")).body))["error"][
        "message"
    ]
    assert len(message) < 2100
    assert message.startswith("The voice 'xxx")
    assert message.endswith("Voices: alloy, nova.")
