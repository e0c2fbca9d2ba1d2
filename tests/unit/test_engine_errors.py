"""What an engine's error status means: for good, or worth another try; and no verb lets one out without a meaning."""

from __future__ import annotations

import asyncio

import pytest

from controller.backends.docker import errors as docker_errors
from controller.backends.http_json import ResponseError, transient_errors, verb
from controller.backends.kubernetes import errors as kubernetes_errors
from controller.errors import EngineError, RequestRejectedError, TransientEngineError
from controller.protocol.model import Reason

NO_SHELL = 'OCI runtime create failed: exec: "/bin/sh": stat /bin/sh: no such file or directory: unknown'


def answered(status: int, message: str = "words") -> ResponseError:
    return ResponseError("the engine", status, message)


def test_an_error_status_is_transient_only_once_that_is_decided() -> None:
    assert isinstance(answered(422), EngineError)
    assert not isinstance(answered(422), TransientEngineError)


def test_a_verb_lets_no_error_status_out_without_a_meaning() -> None:
    @verb
    async def asked(status: int) -> None:
        raise answered(status)

    with pytest.raises(TransientEngineError, match="the engine says: words"):
        asyncio.run(asked(422))
    with pytest.raises(TransientEngineError, match="the engine says: words"), transient_errors():
        raise answered(500)


def test_a_verb_hands_on_what_has_a_meaning() -> None:
    rejected = RequestRejectedError(Reason.INVALID_REQUEST, "never")

    @verb
    async def asked() -> None:
        raise rejected

    with pytest.raises(RequestRejectedError) as raised:
        asyncio.run(asked())
    assert raised.value is rejected


@pytest.mark.parametrize(
    ("status", "message", "rejected"),
    [
        (400, "words", True),
        (413, "words", True),
        (422, "words", True),
        (403, 'admission webhook "policy" denied the request', True),
        (403, 'violates PodSecurity "restricted:latest"', True),
        (403, "exceeded quota: pods", False),
        (403, "jobs is forbidden: cannot create resource", False),
        (404, "not found", False),
        (409, "object is being deleted", False),
        (429, "too many requests", False),
        (500, "words", False),
    ],
)
def test_what_a_cluster_says_of_a_job(status: int, message: str, rejected: bool) -> None:
    meaning = kubernetes_errors.creation_error(answered(status, message), "namespace")
    assert type(meaning) is (RequestRejectedError if rejected else TransientEngineError)
    assert message in str(meaning)


@pytest.mark.parametrize(("status", "rejected"), [(400, True), (404, False), (409, False), (500, False)])
def test_what_a_docker_engine_says_of_a_container(status: int, rejected: bool) -> None:
    meaning = docker_errors.creation_error(answered(status))
    assert type(meaning) is (RequestRejectedError if rejected else TransientEngineError)


@pytest.mark.parametrize(("message", "rejected"), [(NO_SHELL, True), ("cannot allocate memory", False)])
def test_what_a_docker_engine_says_of_a_start(message: str, rejected: bool) -> None:
    meaning = docker_errors.start_error(answered(400, message))
    assert type(meaning) is (RequestRejectedError if rejected else TransientEngineError)
    assert not isinstance(meaning, RequestRejectedError) or meaning.outcome.reason is Reason.START_FAILED
